"""Hosts of a network, made of namespaces on this machine, as root: what is run on one of them sees no other.

A host has a network address, processes, mounts, a name, ``/tmp``, ``/dev/shm``, ``/run`` and a home of its own, and an
sshd; it shares the rest of the file system, and so the interpreter and its packages, with this machine. A switch in a
namespace of its own joins the hosts and this machine, which is ``outside`` to them.

What keeps a host alive is a pipe to this process: when it is closed, by ``close`` or because this process was killed,
the host's first process ends, and the kernel ends all others of the host and removes its mounts and links.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers import wait_until

_TOOLS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "unshare": "util-linux",
}
_HOME = "/tmp/home"  # in the host, whose /tmp is a folder of its own
# The first process of a host is a shell that waits for its pipe's end: as such it also takes leave of orphans, without
# which `ray stop` would wait for processes that have ended.
_FIRST = """
set -e
{seen}
mount --rbind {folder} /tmp
mount --bind /tmp/passwd /etc/passwd
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
hostname {name}
ip link set lo up
/usr/sbin/sshd -f /tmp/ssh/config -E /tmp/ssh/log
echo up
read -r
"""
_SSHD = """
HostKey /tmp/ssh/host_key
AuthorizedKeysFile /tmp/ssh/authorized_keys
PidFile /tmp/ssh/pid
UsePAM no
StrictModes no
UseDNS no
MaxStartups 100
PermitRootLogin prohibit-password
PrintMotd no
Subsystem sftp internal-sftp
"""


def cannot_make_hosts() -> str | None:
    """Why this machine cannot; None if it can."""
    if os.geteuid() != 0:
        return "needs root, for mounts and addresses"
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=_path()) is None})
    if missing:
        return f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
    flags = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--mount-proc"]
    probe = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"needs namespaces: {probe.stderr.strip()}"


class Host:
    """A host. ``address``: on the network. ``tmp``: its ``/tmp``, from outside. ``home``: its user's."""

    def __init__(self, name: str, address: str, tmp: Path, public_key: str) -> None:
        self.name, self.address, self.tmp = name, address, tmp
        self.home = tmp / Path(_HOME).name
        self._furnish(public_key)
        script = _FIRST.format(folder=shlex.quote(str(tmp)), name=shlex.quote(name), seen=self._seen_below_tmp())
        flags = ("--mount", "--net", "--pid", "--ipc", "--uts", "--mount-proc")
        self._namespace = _Namespace(script, flags, tmp / "first.log")

    @property
    def pid(self) -> int:
        """A process in its network."""
        return self._namespace.pid

    def run(self, *command: str) -> str:
        """What a command on it prints; it must end with 0."""
        first = subprocess.run(["pgrep", "--parent", str(self.pid)], capture_output=True, text=True, check=True)
        enter = ["nsenter", "--target", first.stdout.strip(), "--mount", "--net", "--pid", "--ipc", "--uts"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{self.name}: {shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> str:
        """Command lines of all that runs on it, one a line."""
        return self.run("ps", "-ww", "-eo", "args", "--no-headers")

    def stop_sshd(self) -> None:
        """From now on nobody can log in."""
        self.run("bash", "-c", "kill $(cat /tmp/ssh/pid)")

    def start_sshd(self) -> None:
        """Lets people log in again."""
        self.run("/usr/sbin/sshd", "-f", "/tmp/ssh/config", "-E", "/tmp/ssh/log")

    def close(self) -> None:
        """Ends all that runs on it, and it."""
        self._namespace.close()

    def _seen_below_tmp(self) -> str:
        """Commands that show the host what it needs of this machine's ``/tmp``: a Python that is installed there."""
        commands = []
        for prefix in {sys.prefix, sys.base_prefix}:
            if Path(prefix).is_relative_to("/tmp"):
                target = self.tmp / Path(prefix).relative_to("/tmp")
                target.mkdir(parents=True)
                commands.append(shlex.join(["mount", "--bind", prefix, str(target)]))
        return "\n".join(commands)

    def _furnish(self, public_key: str) -> None:
        for folder in (self.home, self.tmp / "ssh"):
            folder.mkdir(parents=True)
        self.tmp.chmod(0o1777)
        ssh = self.tmp / "ssh"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "host_key"))
        (ssh / "authorized_keys").write_text(public_key)
        (ssh / "config").write_text(_SSHD)
        users = Path("/etc/passwd").read_text().splitlines()
        fields = [line.split(":") for line in users]
        rows = [[*row[:5], _HOME, "/bin/bash"] if row[2] == "0" else row for row in fields]
        (self.tmp / "passwd").write_text("".join(":".join(row) + "\n" for row in rows))
        # As a host has it whose Python is on its PATH.
        (self.home / ".bashrc").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")


class Network:
    """Hosts by their names, and ``outside``, the address that this machine has on their network.

    ``key``: the private key that all of them take for root. All files lie in ``folder``.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        subnet = _free_subnet()
        free = (str(address) for address in subnet.hosts())
        self.outside, self.key = next(free), folder / "key"
        self.hosts: dict[str, Host] = {}
        self._link = f"tg{os.getpid()}"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        self._switch = _Namespace("ip link add bridge type bridge && ip link set bridge up && echo up && read -r",
                                  ("--net",), folder / "switch.log")  # fmt: skip
        try:
            self._plug(["ip"], self._link, "outside", f"{self.outside}/{subnet.prefixlen}")
            public_key = self.key.with_suffix(".pub").read_text()
            for name in names:
                host = self.hosts[name] = Host(name, next(free), folder / name, public_key)
                inside = [*_network_of(host.pid), "ip"]
                self._plug(inside, "eth0", name, f"{host.address}/{subnet.prefixlen}")
                # Nothing is forwarded: Ray finds a node's own address by asking for its way to the internet.
                _run(*inside, "route", "add", "default", "via", self.outside)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Removes all of it; the folder stays."""
        for namespace in [*self.hosts.values(), self._switch]:
            namespace.close()
        subprocess.run(["ip", "link", "delete", self._link], capture_output=True)  # else it goes a moment later
        wait_until(lambda: not Path("/sys/class/net", self._link).exists(), 20, lambda: self._link)

    def _plug(self, ip: Sequence[str], here: str, there: str, address: str) -> None:
        """A cable from the network of the command ``ip`` to the switch."""
        _run(*ip, "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(self._switch.pid))
        _run(*ip, "address", "add", address, "dev", here)
        _run(*ip, "link", "set", here, "up")
        _run(*_network_of(self._switch.pid), "ip", "link", "set", "dev", there, "master", "bridge", "up")


@contextlib.contextmanager
def network(folder: Path, *names: str) -> Iterator[Network]:
    """A network with a host of each name, for the time of the block."""
    made = Network(folder, names)
    try:
        yield made
    finally:
        made.close()


class _Namespace:
    """A shell in namespaces of its own, which says ``up`` and then waits for its input's end."""

    def __init__(self, script: str, flags: Sequence[str], log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                ["unshare", *flags, "--fork", "--kill-child", "bash", "-c", script],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={"PATH": _path()}, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"up\n":
            self.close()
            raise RuntimeError(f"unshare {' '.join(flags)}: {log.read_text()}")

    @property
    def pid(self) -> int:
        """unshare's: it is in the new network, but in this machine's process table."""
        return self._process.pid

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its child, and with that all of the namespace, is killed with it
            self._process.wait()


def _free_subnet() -> ipaddress.IPv4Network:
    """A private network that no address or route of this machine touches."""
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [ipaddress.ip_network(row["dst"], strict=False) for row in routes if row["dst"] != "default"]
    candidates = list(ipaddress.ip_network("10.200.0.0/13").subnets(new_prefix=24))
    random.shuffle(candidates)  # others may be looking for one at this moment
    for found in candidates:
        if not any(found.overlaps(network) for network in taken):
            return found
    raise RuntimeError("no network of 10.200.0.0/13 is free")


def _network_of(pid: int) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net"]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": _path()})
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout
