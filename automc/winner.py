"""The folder in which a run hands over a model: the file to deploy, the policy that made it, and how it was measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from automc.disk import decoded, dump, explained, read_json, write_atomic
from automc.policy import Policy
from automc.result import Certificate, Finalist
from automc.trial import Cost

__all__ = ["Winner"]


class Winner:
    """`folder` holds policy.json, certificate.json, model.onnx and, where PyTorch could export it, model.pt2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        finalist: Finalist,
        onnx: bytes,
        certificate: Certificate,
        *,
        model_digest: str,
        device_digest: str,
        predicted: Cost | None = None,
        pt2: bytes | None = None,
    ) -> Path:
        """Write the folder and return it. policy.json comes last and carries the digests of the other files.

        Raises:
            DiskError: a file cannot be written.
        """
        files = {"model.onnx": onnx, "certificate.json": dump(certificate.to_json())}
        if pt2 is not None:
            files["model.pt2"] = pt2
        else:
            self._remove("model.pt2")
        for name, data in files.items():
            write_atomic(self.folder / name, data)
        policy = {
            **finalist.policy.to_json(),
            "digest": finalist.policy.digest,
            "model": model_digest,
            "device": device_digest,
            "validation": finalist.validation,
            "test": finalist.test,
            "predicted": predicted.to_json() if predicted else {"latency_s": finalist.predicted_latency_s},
            "measured": finalist.cost.to_json(),
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        write_atomic(self.folder / "policy.json", dump(policy))
        return self.folder

    def clear(self) -> None:
        """Take away what an earlier attempt wrote.

        Raises:
            DiskError: it cannot be removed.
        """
        self._remove("policy.json", "certificate.json", "model.onnx", "model.pt2")

    def is_of(self, finalist: Finalist) -> bool:
        """Whether the folder holds this very model, as it was measured then; of one policy there may be several.

        Raises:
            InputError: policy.json is of another version.
        """
        path = self.folder / "policy.json"
        if not path.is_file():
            return False
        kept = decoded(path, read_json(path), lambda data: (Policy.from_json(data), Cost.from_json(data["measured"])))
        return kept == (finalist.policy, finalist.cost)

    def policy(self) -> Policy:
        """What `write` was given.

        Raises:
            InputError: there is no winner, or the file is of another version.
        """
        path = self.folder / "policy.json"
        return decoded(path, read_json(path), Policy.from_json)

    def certificate(self) -> Certificate:
        """What `write` was given.

        Raises:
            InputError: there is no winner, or the file is of another version.
        """
        path = self.folder / "certificate.json"
        return decoded(path, read_json(path), Certificate.from_json)

    def _remove(self, *names: str) -> None:
        with explained(self.folder):
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
