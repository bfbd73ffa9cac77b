"""An S3 server for tests. In a module of its own: importing moto hooks into boto."""

from __future__ import annotations

import logging
import secrets

import boto3
from moto.server import ThreadedMotoServer


class S3:
    """moto's S3 server, in a thread of this process, with one bucket. ``environment``: what its clients need."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it would tell of every request after a failed test
        self._server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        # Of a name of its own: what moto holds, all servers of a process share.
        self.bucket, self.secret = f"trialgate-tests-{secrets.token_hex(4)}", secrets.token_hex(12)
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",  # MLflow's
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",  # boto's, and so s3fs's
            "AWS_ACCESS_KEY_ID": "trialgate",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # else boto looks for credentials in the network
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="trialgate",
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=self.bucket)

    def keys(self, prefix: str = "") -> list[str]:
        """Names of the objects below ``prefix`` (at most 1,000)."""
        return [
            found["Key"] for found in self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        ]

    def stop(self) -> None:
        """Ends it; nothing is left."""
        self._server.stop()
