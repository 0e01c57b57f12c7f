"""Training of one row: small, seeded, and resumed to the bit from the end of the last whole epoch."""

import inspect
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import objectives
import torch
from networks import untrained
from safetensors import safe_open
from safetensors.torch import save_file
from table import Row
from torch import Tensor, nn

STATE, MODEL, DIVERGED, PART = "training.pt", "model.safetensors", "diverged.json", "unfinished"
_GIVEN = ("model", "x", "noise")  # parameters of an objective that are no weights


class DivergedError(Exception):
    """Training left the finite numbers."""


def train(row: Row, images: Callable[[], Tensor], folder: Path, told: Callable[[str], None]) -> Path:
    """Train the model of ``row`` on ``images`` (n, *shape) and write it; what is there already is taken.

    Everything random is drawn anew each epoch, by a generator that row's seed and the epoch's number key: so that an
    interrupted training goes on to the same weights.

    Raises:
        DivergedError: it did so, now or before.
        ValueError: what is there was trained by another row.
    """
    file, note = folder / MODEL, folder / DIVERGED
    if file.exists():
        with safe_open(file, "pt") as stored:
            _refuse_another(row, stored.metadata()["row"], folder)
        return file
    if note.exists():
        kept = json.loads(note.read_text(encoding="utf-8"))
        _refuse_another(row, kept["row"], folder)
        raise DivergedError(kept["why"])
    x = images()
    vae, options = untrained(row, tuple(x.shape[1:]))
    adam = torch.optim.Adam(vae.parameters(), row.learning_rate, weight_decay=row.weight_decay, fused=True)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"vae": vae, "adam": adam}
    if row.objective == "factor_vae":
        discriminator = _discriminator(row.latents)
        betas = (0.5, 0.9)  # Kim & Mnih (2018), appendix A
        parts |= {"discriminator": discriminator}
        parts |= {"its_adam": torch.optim.Adam(discriminator.parameters(), 1e-4, betas=betas)}
    losses: list[float] = []
    seconds = 0.0
    if (folder / STATE).exists():
        state = torch.load(folder / STATE, weights_only=True)
        _refuse_another(row, state["row"], folder)
        losses, seconds = state["losses"], state["seconds"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    vae.train()
    while len(losses) < row.epochs:
        start = time.monotonic()
        losses.append(_epoch(row, x, len(losses), parts))
        seconds += time.monotonic() - start
        told(f"{row.name}: epoch {len(losses)}/{row.epochs}, loss {losses[-1]:.2f} nats, {seconds:.0f} s")
        if not math.isfinite(losses[-1]):
            why = f"the loss was {losses[-1]} in epoch {len(losses)}"
            note.write_text(json.dumps({"why": why, "row": row.model_dump_json()}), encoding="utf-8")
            raise DivergedError(why)
        state: dict[str, object] = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"row": row.model_dump_json(), "losses": losses, "seconds": seconds}, folder / PART)
        (folder / PART).replace(folder / STATE)
    facts = {"adapter": row.adapter, **options}
    metadata = {f"vaeaudit.{name}": json.dumps(value) for name, value in facts.items()}
    metadata |= {"row": row.model_dump_json(), "losses": json.dumps(losses), "seconds": f"{seconds:.1f}"}
    tensors = {name: tensor.contiguous() for name, tensor in vae.state_dict().items()}
    save_file(tensors, folder / PART, metadata=metadata)
    (folder / PART).replace(file)
    (folder / STATE).unlink()
    return file


def _refuse_another(row: Row, kept: str, folder: Path) -> None:
    """Raise ValueError unless ``kept``, a row in JSON, trains as ``row`` does."""
    before, now = (one.model_dump(exclude={"audit"}) for one in (Row.model_validate_json(kept), row))
    if other := [f"{name} = {before[name]}, now {now[name]}" for name in now if before[name] != now[name]]:
        raise ValueError(
            f"{folder} was trained with {', '.join(other)}; delete it to train anew, or name another folder with --out"
        )


def _epoch(row: Row, x: Tensor, epoch: int, parts: dict[str, nn.Module | torch.optim.Optimizer]) -> float:
    """Mean loss over one pass, in batches of one size."""
    vae, adam = parts["vae"], parts["adam"]
    objective = getattr(objectives, row.objective)
    taken = inspect.signature(objective).parameters
    generator = torch.Generator().manual_seed(1_000_003 * row.seed + epoch)
    batches = torch.randperm(len(x), generator=generator).split(min(row.batch, len(x)))
    batches = [batch for batch in batches if len(batch) == len(batches[0])]
    of_run: dict[str, object] = {"items": len(x), "discriminator": parts.get("discriminator")}
    total = 0.0
    for step, batch in enumerate(batches):
        ramp = min(1.0, 2 * (epoch + step / len(batches)) / row.epochs)
        of_run |= {name: ramp * getattr(row, name) for name in ("capacity", "categorical_capacity")}
        weights = {name: of_run.get(name, getattr(row, name, None)) for name in taken if name not in _GIVEN}
        part, other = batch, None
        if row.objective == "factor_vae":
            part, other = batch.chunk(2)
        noise = torch.randn(len(part), *vae.prior.noise_shape, generator=generator)
        loss = objective(vae, x[part], noise, **weights)
        adam.zero_grad()
        loss.backward()
        adam.step()
        total += loss.item()
        if other is not None:
            _discriminate(parts, x[part], x[other], generator)
    return total / len(batches)


def _discriminate(parts: dict, x: Tensor, other: Tensor, generator: torch.Generator) -> None:
    """One step of the discriminator of a FactorVAE."""
    draws = []
    for images in (x, other[: len(x)]):
        q = parts["vae"].encode(images)
        draws.append(q.sample(torch.randn(len(images), *q.noise_shape, generator=generator)))
    orders = torch.rand(draws[1].shape, generator=generator).argsort(0)
    parts["its_adam"].zero_grad()
    objectives.discriminator_loss(parts["discriminator"], *draws, orders).backward()
    parts["its_adam"].step()


def _discriminator(latents: int, width: int = 400) -> nn.Sequential:
    """Six layers with leaky ReLUs, narrower than the 1,000 units of Kim & Mnih (2018)."""
    layers: list[nn.Module] = []
    for inputs in (latents, *[width] * 4):
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, 2))
