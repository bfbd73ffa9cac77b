"""Checks a file for ``ray up`` where Ray does not look:   python -m configs.cluster_check cluster.yaml

Ray's own validation comes first. It lets any key through under ``provider`` and ``node_config``, where a typo is found
by a bill or by a cluster that does not start, and it does not see that a key stands there twice. What is wrong is told
with its line and the nearest valid key; the exit code is 0, or 2 if there is anything.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs.exit_codes import ExitCode, UsageError

# What Ray 2.60 reads of `provider`, whatever its type, and of each type that we ship a file for.
_EVERY_PROVIDER = {"type", "disable_node_updaters", "disable_launch_config_check", "foreground_node_launch",
                   "worker_liveness_check", "use_internal_ips", "use_external_head_ip"}  # fmt: skip
_PROVIDERS = {
    "aws": {"region", "availability_zone", "cache_stopped_nodes", "security_group", "key_pair", "cloudwatch",
            "aws_credentials"},
    "local": {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}  # fmt: skip
_OF_RAY = {"SubnetIds"}  # beside EC2's own: Ray takes one of them
_BY_RAY = {"MinCount", "MaxCount"}  # Ray counts
_MOVING = re.compile(r"^[^:@]+(:(latest|nightly)\S*)?$")  # an image that is another one tomorrow
_TYPES = {"string": str, "integer": int, "long": int, "boolean": bool, "structure": dict, "list": list}


class Problem(NamedTuple):
    """Something wrong: its line, from 1, and what to do."""

    line: int
    message: str


def check(path: Path) -> list[Problem]:
    """What is wrong with a cluster file, by lines. Raises UsageError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode) or not isinstance(values.get("provider"), dict):
        raise UsageError(f"{path} is no cluster file: expected a mapping with the key provider")
    return sorted({*_of_ray(root, values), *_ours(root, values)})


def _of_ray(root: yaml.MappingNode, values: dict[str, Any]) -> Iterator[Problem]:
    """What Ray's validation finds first."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            validate_config(prepare_config(values))
    except jsonschema.ValidationError as error:
        node, where = _at(root, error.absolute_path)
        known = set(error.schema.get("properties", ()))
        if error.validator == "additionalProperties" and isinstance(node, yaml.MappingNode):
            yield from _unknown(node, where, known)
        else:
            yield Problem(_line(node), f"{where or 'the file'}: {error.message}")
    except Exception as error:  # noqa: BLE001 - Ray has no base for its errors; some it prints
        message = str(error) if str(error) and "Click" not in type(error).__name__ else said.getvalue().strip()
        yield Problem(_line(root), f"Ray refuses it: {message or repr(error)}")


def _ours(root: yaml.MappingNode, values: dict[str, Any]) -> Iterator[Problem]:
    yield from _twice(root, "")
    kind = values["provider"].get("type")
    provider = _child(root, "provider")
    if kind not in _PROVIDERS:
        yield Problem(_line(provider), f"provider.type is {kind!r}; this check knows {', '.join(sorted(_PROVIDERS))}")
        return
    yield from _unknown(provider, "provider", _EVERY_PROVIDER | _PROVIDERS[kind])
    if kind == "local":
        yield from (Problem(_line(key), f"{key.value}: the provider local has no node types; each machine is as it is")
                    for key, _ in root.value if key.value in ("available_node_types", "head_node_type"))  # fmt: skip
    else:
        yield from _node_configs(root)
    yield from _images(root, "")


def _node_configs(root: yaml.MappingNode) -> Iterator[Problem]:
    """``node_config`` goes to EC2's RunInstances: keys and types are held against botocore's description of it."""
    try:
        from botocore.session import get_session
    except ImportError:
        raise UsageError("node_config is checked with botocore: pip install 'trialgate[s3]'") from None
    request = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = _child(root, "available_node_types")
    for name, node_type in types.value if isinstance(types, yaml.MappingNode) else []:
        where = f"available_node_types.{name.value}.node_config"
        config = _child(node_type, "node_config")
        if config is not None:
            yield from _against(config, where, request, extra=_OF_RAY, without=_BY_RAY)


def _against(node: yaml.Node, where: str, shape: Any, extra: Iterable[str] = (), without: Iterable[str] = ()
             ) -> Iterator[Problem]:  # fmt: skip
    """A value against a shape of botocore's."""
    value = yaml.SafeLoader("").construct_object(node, deep=True)
    expected = _TYPES.get(shape.type_name)
    if expected is not None and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
        yield Problem(_line(node), f"{where}: {value!r} is a {type(value).__name__}; expected a {expected.__name__}")
    elif shape.type_name == "structure":
        yield from _unknown(node, where, (set(shape.members) | set(extra)) - set(without))
        for key, child in node.value:
            if key.value in shape.members:
                yield from _against(child, f"{where}.{key.value}", shape.members[key.value])
    elif shape.type_name == "list":
        for index, child in enumerate(node.value):
            yield from _against(child, f"{where}[{index}]", shape.member)


def _images(node: yaml.Node, where: str) -> Iterator[Problem]:
    """Images must be pinned, or the nodes of one cluster run different versions of Ray."""
    for key, child in node.value if isinstance(node, yaml.MappingNode) else []:
        path = f"{where}.{key.value}".lstrip(".")
        if key.value in ("image", "head_image", "worker_image") and _MOVING.match(str(child.value)):
            yield Problem(
                _line(child), f"{path}: {child.value} is not pinned; name a version, as in rayproject/ray:2.60.0-py311"
            )
        yield from _images(child, path)


def _twice(node: yaml.Node, where: str) -> Iterator[Problem]:
    """YAML takes the last of two equal keys, and says nothing."""
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _twice(child, f"{where}[{index}]")
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            path = f"{where}.{key.value}".lstrip(".")
            if key.value in seen:
                yield Problem(_line(key), f"{path}: stands there twice, first in line {seen[key.value]}; remove one")
            seen[key.value] = _line(key)
            yield from _twice(child, path)


def _unknown(node: yaml.Node | None, where: str, known: set[str]) -> Iterator[Problem]:
    assert isinstance(node, yaml.MappingNode)
    for key, _ in node.value:
        if key.value not in known:
            near = difflib.get_close_matches(key.value, known, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}?" if near else f"valid are {', '.join(sorted(known))}"
            yield Problem(_line(key), f"{f'{where}.{key.value}'.lstrip('.')}: unknown key; {fix}")


def _at(root: yaml.Node, path: Iterable[str | int]) -> tuple[yaml.Node, str]:
    """The node at a path of keys, and the path in words; the last one that is written, where Ray filled in the rest."""
    node, where = root, ""
    for step in path:
        below = (
            node.value[step] if isinstance(step, int) and isinstance(node, yaml.SequenceNode) else _child(node, step)
        )
        if below is None:
            break
        node, where = below, f"{where}[{step}]" if isinstance(step, int) else f"{where}.{step}".lstrip(".")
    return node, where


def _child(node: yaml.Node | None, name: str | int) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((child for key, child in node.value if key.value == name), None)


def _line(node: yaml.Node | None) -> int:
    return 1 if node is None else int(node.start_mark.line) + 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m configs.cluster_check", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file for `ray up`")
    code = ExitCode.OK
    for path in parser.parse_args(arguments).files:
        try:
            told = [f"{path}:{problem.line}: {problem.message}" for problem in check(path)]
        except UsageError as error:
            told = [str(error)]
        code = ExitCode.USAGE if told else code
        print("\n".join(told) if told else f"{path}: valid", file=sys.stderr if told else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
