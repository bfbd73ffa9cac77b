"""Builds the Dockerfile without an image engine, as root: every instruction in a layer of its own over a Debian root.

It stands for ``docker build`` and ``docker run`` as far as this project's Dockerfile goes: stages, ARG, ENV, WORKDIR,
COPY (with --from), RUN (with secrets and binds from stages), USER, HEALTHCHECK and CMD. The base image is
replaced by the Debian release that it is made of, with that release's own Python. A layer is the upper folder of an
overlay; whatever runs has mounts, processes and, where asked for, a network of its own, which end with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
RELEASE = "bookworm"
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT = re.compile(r"--mount=(\S+)\s+")


def instructions(dockerfile: Path = REPOSITORY / "Dockerfile") -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of every instruction, comments dropped and continuation lines joined."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if line.strip()]
    joined = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", "")
    parts = (line.split(maxsplit=1) for line in joined.splitlines())
    return [(name.upper(), rest) for name, rest in parts]


def cannot_build() -> str | None:
    """Why this machine cannot build it; None if it can."""
    if os.geteuid() != 0:
        return "needs root, for overlays and chroot"
    missing = [tool for tool in ("debootstrap", "unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install debootstrap util-linux iproute2"
    probe = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"needs namespaces: {probe.stderr.strip()}"


@dataclass
class Stage:
    """A stage while it is built. ``layers``: folders, the newest last; ``sizes``: bytes of each by its instruction."""

    layers: list[Path]
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _BASE_PATH})
    workdir: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    sizes: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What a process sees: ``binds`` are (source, target) pairs; ``network`` None is the machine's, else its own."""

    command: Sequence[str]
    binds: Sequence[tuple[Path, str]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    own_network: bool = False


class Image:
    """The built image. ``folder`` holds all its layers; ``pip_conf`` is the build's secret pip.conf."""

    def __init__(self, folder: Path, pip_conf: Path, arguments: Mapping[str, str] | None = None) -> None:
        self._folder, self._pip_conf, self._arguments = folder, pip_conf, dict(arguments or {})
        self._stages: dict[str, Stage] = {}
        self._number = 0
        self._debian = folder / "debian"
        _debootstrap(self._debian)
        self._final = Stage([self._debian])
        for name, rest in instructions():
            self._take(name, rest)

    @property
    def layers(self) -> list[tuple[str, int]]:
        """(instruction, bytes) of every layer of the final stage that is not the base image's."""
        return self._final.sizes

    @property
    def command(self) -> list[str]:
        """CMD."""
        return self._final.command

    @property
    def healthcheck(self) -> list[str]:
        """The command of HEALTHCHECK."""
        return self._final.healthcheck

    def start(self, run: Run, **options: object) -> subprocess.Popen[str]:
        """``docker run``: what is written is kept in a layer of its own. ``options``: Popen's. Returns when the command
        has the image's root, or has ended."""
        process = self._popen(self._final, run, self._new_layer(), **options)
        while process.poll() is None and not _is_inside(process):
            time.sleep(0.02)
        return process

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs ``command`` to its end, as the image's user."""
        process = self.start(Run(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def enter(self, process: subprocess.Popen[str], command: Sequence[str], environment: Mapping[str, str]
              ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """``docker exec`` in what ``start`` started."""
        prefix = ["nsenter", "--target", str(main_process(process).pid), "--mount", "--net", "--pid", "--root", "--wd",
                  "--setuid", "1000", "--setgid", "1000"]  # fmt: skip
        return subprocess.run([*prefix, *command], env={**self._environment(self._final), **environment},
                              capture_output=True, text=True)  # fmt: skip

    def _take(self, name: str, rest: str) -> None:
        stage = self._final
        match name:
            case "FROM":
                self._begin_stage(rest)
            case "ARG":
                argument, _, default = rest.partition("=")
                stage.environment[argument] = self._arguments.get(argument, default)
            case "ENV":
                for word in shlex.split(rest):
                    key, _, value = word.partition("=")
                    stage.environment[key] = re.sub(r"\$(\w+)", lambda m: stage.environment.get(m[1], ""), value)
            case "WORKDIR":
                self._layer(stage, f"WORKDIR {rest}", ["mkdir", "-p", rest])
                stage.workdir = rest
            case "COPY":
                self._copy(stage, rest)
            case "RUN":
                binds = [bind for mount in _MOUNT.findall(rest) for bind in self._binds(mount)]
                self._layer(stage, rest, ["/bin/sh", "-c", _MOUNT.sub("", rest)], binds)
            case "USER":
                stage.user = rest
            case "CMD":
                stage.command = _exec_form(rest)
            case "HEALTHCHECK":
                stage.healthcheck = _exec_form(rest.partition("CMD")[2])
            case "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise ValueError(f"Dockerfile: {name} is not known to tests/image.py; teach it, or do without")

    def _begin_stage(self, rest: str) -> None:
        base, _, name = rest.partition(" AS ")
        known = self._stages.get(base)
        if known is None:
            self._final = Stage([self._debian])
        else:
            self._final = Stage(list(known.layers), dict(known.environment), known.workdir, known.user)
        self._stages[name or "final"] = self._final

    def _copy(self, stage: Stage, rest: str) -> None:
        options, words = [], []
        for word in rest.split():
            (options if word.startswith("--") else words).append(word)
        *sources, target = words
        target = os.path.normpath(os.path.join(stage.workdir, target)) + ("/" if target.endswith("/") else "")
        came_from = next((option.removeprefix("--from=") for option in options if option.startswith("--from=")), None)
        if came_from is not None:
            binds = [(self._view(came_from) / sources[0].lstrip("/"), "/mnt")]
            script = f"mkdir -p {target} && cp -a /mnt/. {target}"
            return self._layer(stage, rest, ["/bin/sh", "-c", script], binds)
        context = self._folder / f"context-{self._number}"
        context.mkdir()
        for pattern in sources:
            for source in sorted(REPOSITORY.glob(pattern)):
                _copy_without_bytecode(source, context / ("" if source.is_dir() else source.name))
        script = f"mkdir -p {target} && cp -r /mnt/. {target}"
        return self._layer(stage, rest, ["/bin/sh", "-c", script], [(context, "/mnt")])

    def _binds(self, mount: str) -> Iterator[tuple[Path, str]]:
        wanted = dict(part.split("=", 1) for part in mount.split(","))
        if wanted["type"] == "secret":
            yield self._pip_conf, f"/run/secrets/{wanted['id']}"
            yield from ((path, str(path)) for path in _local_paths(self._pip_conf))
        elif wanted["type"] == "bind":
            yield self._view(wanted["from"]) / wanted["source"].lstrip("/"), wanted["target"]
        else:
            raise ValueError(f"Dockerfile: --mount={mount} is not known to tests/image.py; teach it, or do without")

    def _view(self, stage: str) -> Path:
        """Where ``_popen`` mounts another stage."""
        return self._folder / "stages" / stage

    def _layer(self, stage: Stage, told: str, command: list[str], binds: Sequence[tuple[Path, str]] = ()) -> None:
        layer = self._new_layer()
        process = self._popen(stage, Run(command, binds), layer, as_root=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)  # fmt: skip
        output, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"Dockerfile: {told}\nended with {process.returncode}:\n{output[-4000:]}")
        stage.layers.append(layer)
        stage.sizes.append((told, _bytes(layer)))

    def _new_layer(self) -> Path:
        self._number += 1
        layer = self._folder / f"layer-{self._number}"
        layer.mkdir()
        return layer

    def _environment(self, stage: Stage) -> dict[str, str]:
        return {"HOME": "/root" if stage.user == "0:0" else "/home/trialgate", **stage.environment}

    def _popen(self, stage: Stage, run: Run, layer: Path, *, as_root: bool = False, **options: object
               ) -> subprocess.Popen[str]:  # fmt: skip
        number = layer.name.rpartition("-")[2]
        root, spare = self._folder / f"root-{number}", self._folder / f"spare-{number}"
        root.mkdir()
        spare.mkdir()
        script = ["set -e", _overlay(stage.layers, root, layer, spare)]
        if run.own_network:
            script.append("ip link set lo up")
        for name in {source.parts[len(self._folder.parts) + 1] for source, _ in run.binds
                     if source.is_relative_to(self._folder / "stages")}:  # fmt: skip
            view = self._view(name)
            view.mkdir(parents=True, exist_ok=True)
            script.append(_overlay(self._stages[name].layers, view))
        script += [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev",
                   f"mount --rbind /sys {root}/sys"]  # fmt: skip
        for source, target in [*run.binds, (Path("/etc/resolv.conf"), "/etc/resolv.conf")]:
            script.append(_bind(source, f"{root}{target}"))
        inner = f"cd {shlex.quote(stage.workdir)} && exec {shlex.join(run.command)}"
        user = "" if as_root else f"--userspec={stage.user} "
        spaces = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
        spaces += ["--net"] if run.own_network else []
        environment = {**self._environment(stage), **run.environment}
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
        chroot = f"{shutil.which('chroot')} {user}{root} /bin/sh -c {shlex.quote(inner)}"
        script.append(f"exec env -i {settings} {chroot}")
        command = ["unshare", *spaces, "sh", "-c", "\n".join(script)]
        # As an engine does: a test session that runs in the background ignores Ctrl-C, and children inherit that.
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        return subprocess.Popen(command, text=True, preexec_fn=listen, **options)  # type: ignore[call-overload,no-any-return]


def main_process(process: subprocess.Popen[str]) -> psutil.Process:
    """The first process inside what ``Image.start`` started: the image's PID 1."""
    return psutil.Process(process.pid).children()[0]


def _is_inside(process: subprocess.Popen[str]) -> bool:
    try:
        return os.readlink(f"/proc/{main_process(process).pid}/root") != "/"
    except (IndexError, FileNotFoundError, psutil.NoSuchProcess):
        return False  # not begun yet, or ended


def pip_conf_of_this_machine(file: Path) -> Path:
    """Writes what pip is configured with here, constraints aside, to ``file``: the build's secret."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    values = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        values[name.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ")
    values.pop("constraint", None)
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()), encoding="utf-8")
    return file


def _local_paths(pip_conf: Path) -> list[Path]:
    words = pip_conf.read_text(encoding="utf-8").replace("file://", "").split()
    paths = [Path(word) for word in words if word.startswith("/") and Path(word).exists()]
    # An index refers to files beside it.
    return sorted({path.parent if path.is_dir() and len(path.parts) > 3 else path for path in paths})


def _debootstrap(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", RELEASE, str(root)]
    done = subprocess.run(["unshare", "--mount", "--propagation=private", *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"debootstrap ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    (root / "usr/bin/python").symlink_to("python3")


def _overlay(layers: Sequence[Path], root: Path, upper: Path | None = None, work: Path | None = None) -> str:
    lower = ":".join(str(layer) for layer in reversed(layers))
    writable = f",upperdir={upper},workdir={work}" if upper else ""
    return f"mount -t overlay overlay -o lowerdir={lower}{writable} {root}"


def _bind(source: Path, target: str) -> str:
    make = f"if [ -d {source} ]; then mkdir -p {target}; else mkdir -p {os.path.dirname(target)}; touch {target}; fi"
    return f"{make}; mount --bind {source} {target}"


def _copy_without_bytecode(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.py[cod]"))
    else:
        shutil.copy2(source, target)


def _exec_form(text: str) -> list[str]:
    words: list[str] = json.loads(text)
    return words


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
