"""Batch scoring from S3 to S3 on a Ray of its own, ended in the middle and started again."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from configs.exit_codes import ExitCode
from tests.e2e.processes import Command
from tests.integration.serving.world import NAME, Registry
from tests.s3 import S3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
ROWS = 3000


def test_from_s3_to_s3_ended_in_the_middle(tracking_uri: str, tmp_path: Path) -> None:
    registry = Registry(tracking_uri, tmp_path)
    registry.promote(registry.register())
    s3 = S3()
    try:
        lines = [json.dumps({"id": row, "text": "good" if row % 3 else "bad"}) for row in range(ROWS)]
        for name, part in (("a", lines[:1000]), ("b", lines[1000:])):
            s3.client.put_object(Bucket=s3.bucket, Key=f"in/{name}.jsonl", Body="\n".join(part).encode())
        url = f"s3://{s3.bucket}"
        arguments = ["--input", f"{url}/in", "--output", f"{url}/out", "--model", f"{NAME}@production",
                     "--set", f"tracking.uri={tracking_uri}", "--set", f"home={tmp_path / 'home'}",
                     "--set", "batch_score.rows_per_part=10", "--workers", "1"]  # fmt: skip

        ended = Command("ray_jobs.batch_score", *arguments, cwd=tmp_path, environment=s3.environment)
        ended.wait_for("first part scored", 200)
        ended.send(signal.SIGTERM)
        assert ended.finished(30) == ExitCode.INTERRUPTED, ended.output
        assert ended.left_behind(15) == []
        assert "Traceback" not in ended.output
        done = s3.keys("out/part-")
        assert 0 < len(done) < ROWS // 10

        again = Command("ray_jobs.batch_score", *arguments, "--json-file", f"{url}/result.json", cwd=tmp_path,
                        environment=s3.environment)  # fmt: skip
        assert again.finished(300) == ExitCode.OK, again.output
        result = json.loads(s3.client.get_object(Bucket=s3.bucket, Key="result.json")["Body"].read())
        assert (result["rows"], result["scored"]) == (ROWS, ROWS)
        assert result["computed_rows"] == ROWS - 10 * len(done)
        scored = [
            json.loads(line)
            for key in s3.keys("out/part-")
            for line in s3.client.get_object(Bucket=s3.bucket, Key=key)["Body"].read().splitlines()
        ]
        assert sorted(row["id"] for row in scored) == list(range(ROWS))
        assert {(row["text"], row["prediction"]["label"]) for row in scored} == {
            ("good", "positive"),
            ("bad", "negative"),
        }
        assert s3.keys("out/_SUCCESS")
    finally:
        s3.stop()
