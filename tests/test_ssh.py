"""Machines that are reached by ssh: what goes there, what comes back, and what is said where nothing does."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import free_port

from automc.devices.cpu import Cpu
from automc.devices.exclusive import overheard
from automc.devices.kit import agent_archive
from automc.devices.probe import conv_model
from automc.devices.ssh import INSTALL, Ssh
from automc.errors import InputError, MissingError
from automc.predict.targets import open_device

_HELLO = "automc: frames follow\\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))


def test_how_to_try_a_machine_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_SSH", "sh -c 'exit 255'")
    with pytest.raises(MissingError, match="Try `ssh 'a b' true`"):
        Ssh("a b").environment()


def _shell(monkeypatch: pytest.MonkeyPatch, folder: Path, before: str) -> None:
    """An ssh command that runs `before` in a shell of this machine, and then what it was asked to."""
    (folder / "ssh").write_text(f'#!/bin/sh\n[ "$1" = -V ] && exit 0\nshift\n{before}\nHOME={folder} exec sh -c "$*"\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("AUTOMC_SSH", str(folder / "ssh"))
    monkeypatch.setenv("AUTOMC_REMOTE_PYTHON", sys.executable)


def test_what_the_shell_there_prints_first_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _shell(monkeypatch, tmp_path, "echo Welcome to this machine")
    there = Ssh("pi")
    assert there.key == Cpu(1).key
    there.close()


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        ("echo Your account has expired; exit 1", "pi cannot measure: Your account has expired"),
        ("printf 'No\\033 way'; exit 1", "pi cannot measure: No way"),
        ("echo no route >&2; exit 255", "pi cannot be reached: no route"),
        ("head -c 70000 /dev/zero | tr '\\0' x", "pi cannot measure: xxx"),
        (f"printf '{_HELLO}'; exit 255", "pi broke off: it said nothing"),
        (f"printf '{_HELLO}'; head -c 9 >&2; exit 255", "pi broke off"),
        (f"printf '{_HELLO}\\100\\0\\0\\0\\0\\0\\0\\0{{\"key\"'; exit 255", "pi broke off: it said nothing"),
        (
            f"printf '{_HELLO}Welcome to this machine'; cat >/dev/null",
            "pi broke off: b'Welcome ' does not begin a frame",
        ),
        (f"printf '{_HELLO}\\003\\0\\0\\0\\0\\0\\0\\0{{}}.'; cat >/dev/null", "pi broke off: Extra data"),
    ],
)
def test_an_answer_that_is_none_or_is_cut_off_is_said(
    serving: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _shell(monkeypatch, tmp_path, f'case "$*" in *serve*) {serving};; esac')
    with pytest.raises(MissingError, match=re.escape(said)):
        Ssh("pi").environment()


def test_a_machine_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automc.devices.ssh._ANSWER_S", 1.0)
    _shell(monkeypatch, tmp_path, 'case "$*" in *serve*) exec cat >/dev/null;; esac')
    with pytest.raises(MissingError, match="pi cannot measure: it said nothing"):
        Ssh("pi").environment()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An ssh server of our own on this machine, which $AUTOMC_SSH reaches as "target"."""
    if not os.access("/usr/sbin/sshd", os.X_OK) or shutil.which("ssh") is None or os.geteuid() != 0:
        pytest.skip("no ssh server can be started here")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    (folder / "config").write_text(
        f"Host target\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {folder}/user\n"
        f" IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile {folder}/known\n BatchMode yes\n LogLevel ERROR\n"
        "Host closed\n HostName 127.0.0.1\n Port 1\n BatchMode yes\n"
    )
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE)
    try:
        _until_open(port, server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTOMC_SSH", f"ssh -F {folder}/config")
            patch.setenv("AUTOMC_REMOTE_PYTHON", f"env HOME={folder} {sys.executable}")
            yield "target"
    finally:
        server.terminate()
        server.wait()


def _until_open(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    pytest.skip("the ssh server did not start")


def test_a_machine_behind_ssh_measures_like_this_one(host: str) -> None:
    here, there = Cpu(1), Ssh(host)
    assert there.key == here.key
    assert there.environment()["host"]
    assert there.environment()["device"] == "ssh:target"
    assert there.capabilities() == here.capabilities()
    x = [np.ones((1, 64, 14, 14), np.float32)]
    model = conv_model(64, 64)
    with overheard() as heard:
        assert [node.op for node in there.node_times(model, x)] == [node.op for node in here.node_times(model, x)]
    assert heard == []
    measured = there.measure({"one": model, "two": model}, x, rounds=3, time_limit_s=1.0)
    assert {len(rounds) for rounds in measured.rounds_s.values()} == {3}
    with pytest.raises(InputError, match="could not run the model"):
        there.node_times(model, [np.ones((1, 3), np.float32)])
    assert there.node_times(model, x)
    there.close()
    assert there.node_times(model, x)
    there.close()


def test_a_machine_that_does_not_answer_is_said(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"closed cannot be reached: .*refused.*Try `ssh closed true`"):
        Ssh("closed").environment()
    monkeypatch.setenv("AUTOMC_REMOTE_PYTHON", "no-such-python")
    with pytest.raises(MissingError, match=r"cannot measure: .*no-such-python"):
        Ssh(host).environment()
    monkeypatch.setenv("AUTOMC_SSH", "no-such-ssh")
    with pytest.raises(MissingError, match="'no-such-ssh' is not installed"):
        Ssh(host).environment()
    with pytest.raises(InputError, match="names no machine"):
        open_device("ssh:")


def test_the_agent_is_the_same_archive_each_time() -> None:
    assert agent_archive({}) == agent_archive({})


def test_what_measures_is_kept_on_the_other_machine_once_all_of_it_is_there(tmp_path: Path) -> None:
    kept = tmp_path / ".cache/automc/agent.zip"

    def install(sent: bytes) -> int:
        command = ["sh", "-c", INSTALL.format(name=kept.name, size=4)]
        return subprocess.run(command, input=sent, env={**os.environ, "HOME": str(tmp_path)}, check=False).returncode

    assert install(b"12") != 0  # the connection broke
    assert not kept.exists()
    assert install(b"1234") == 0
    assert kept.read_bytes() == b"1234"
    kept.write_bytes(b"12")  # by an earlier version, which kept what there was
    assert install(b"1234") == 0
    assert kept.read_bytes() == b"1234"
    assert install(b"") == 0  # it is there already
