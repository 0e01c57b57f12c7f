"""Which installed adapters fit a checkpoint by the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from vaeaudit.errors import MisfitError, VaeauditError
from vaeaudit.model.adapters import Adapter, adapter_names, find_adapter
from vaeaudit.model.checkpoints import Checkpoint, readings
from vaeaudit.model.registry import opened_by


@dataclass(frozen=True)
class Fit:
    """An adapter, tried on a checkpoint: ``share`` of the names that fit, 1 where it opens; else ``why`` it does not.

    An adapter that opens a file need not be the right one: activations, layouts and ranges have no names.
    """

    name: str
    share: float
    why: str

    @property
    def opens(self) -> bool:
        """Whether it opens the file as it is."""
        return not self.why


def ranked(checkpoint: Checkpoint) -> list[Fit]:
    """Each installed adapter with what the file states of itself as its options, the best fit first."""
    return sorted((_tried(name, checkpoint) for name in adapter_names()), key=lambda fit: -fit.share)


def _tried(name: str, checkpoint: Checkpoint) -> Fit:
    facts = {key: value for key, value in checkpoint.facts.items() if key != "adapter"}
    options = facts if checkpoint.facts.get("adapter") in (None, name) else {}
    share = 0.0
    try:
        adapter = find_adapter(name)
        for one in (checkpoint, *readings(checkpoint)):
            share = max(share, _share(adapter, one, options))
        opened_by(adapter, checkpoint, options)
    except VaeauditError as error:
        return Fit(name, share, str(error))
    return Fit(name, 1.0, "")


def _share(adapter: Adapter, checkpoint: Checkpoint, options: Mapping[str, object]) -> float:
    try:
        adapter.open(checkpoint, options)
    except MisfitError as error:
        return error.fits
    except Exception:  # of another package's code, or of names that are not in the file; why is told by what opens it
        return 0.0
    return 1.0
