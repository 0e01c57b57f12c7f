"""Train the example beta-VAEs on shapes drawn at random; see README.md beside this file.

    python examples/train.py --beta 1 --out examples/shapes-beta1.safetensors
    python examples/train.py --beta 8 --out examples/shapes-beta8.safetensors

The networks are those of the adapter "mlp": random tensors under its names, opened by it, then trained.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from shapes import SIZE, draw, grid, random_factors
from torch import Tensor, nn

from vaeaudit import Checkpoint
from vaeaudit.model.adapters import find_adapter
from vaeaudit.model.vae import reconstruct

WIDTH, LATENTS = 160, 10
IMAGES, BATCH = 40_000, 200
LEARNING_RATE = 2e-3
FACTS = {
    "adapter": "mlp",
    "activation": "relu",
    "likelihood": "bernoulli",
    "input_shape": [1, SIZE, SIZE],
    "range": [0, 1],
}


def untrained(seed: int) -> nn.Module:
    """A model of random weights, from the adapter that will open it once trained."""
    pixels = SIZE * SIZE
    sizes = {
        "encoder.shared.0": (pixels, WIDTH),
        "encoder.mean.0": (WIDTH, WIDTH),
        "encoder.mean.2": (WIDTH, LATENTS),
        "encoder.logvar.0": (WIDTH, WIDTH),
        "encoder.logvar.2": (WIDTH, LATENTS),
        "decoder.0": (LATENTS, WIDTH),
        "decoder.2": (WIDTH, WIDTH),
        "decoder.4": (WIDTH, pixels),
    }
    torch.manual_seed(seed)
    layers = {name: nn.Linear(inputs, outputs) for name, (inputs, outputs) in sizes.items()}
    tensors = {f"{name}.{key}": t for name, layer in layers.items() for key, t in layer.state_dict().items()}
    options = {name: value for name, value in FACTS.items() if name != "adapter"}
    vae = find_adapter("mlp").open(Checkpoint(Path("untrained"), "", tensors, {}), options)
    assert isinstance(vae, nn.Module)
    return vae


def training_images(seed: int) -> Tensor:
    """Images (IMAGES, 1, 28, 28) in [0, 1], of factors between and on the values of the bundled file."""
    factors = random_factors(IMAGES, seed)
    imgs = np.concatenate([draw(part) for part in np.array_split(factors, IMAGES // 2000)])
    return torch.from_numpy(imgs).float().div(255).unsqueeze(1)


def train(vae: nn.Module, x: Tensor, beta: float, epochs: int) -> None:
    """Maximise E log p(x|z) - beta KL with Adam, the learning rate falling along a cosine to zero.

    beta grows from zero over the first quarter of the steps: otherwise latents that start slowly are lost.
    """
    optimiser = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    warm_up, step = max(1, steps // 4), 0
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        sums = np.zeros(2)
        batches = torch.randperm(len(x)).split(BATCH)
        for batch in batches:
            posterior = vae.encode(x[batch])
            z = posterior.sample(torch.randn(len(batch), *posterior.noise_shape))
            recon = -vae.decode(z).log_prob(x[batch]).mean()
            kl = posterior.kl(vae.prior).mean()
            step += 1
            optimiser.zero_grad()
            (recon + beta * min(1.0, step / warm_up) * kl).backward()
            optimiser.step()
            schedule.step()
            sums += recon.item(), kl.item()
        if epoch % 5 == 0 or epoch == epochs:
            recon_mean, kl_mean = sums / len(batches)
            print(
                f"epoch {epoch}/{epochs}: reconstruction {recon_mean:.2f} nats, KL {kl_mean:.2f} nats, "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )


@torch.no_grad()
def describe(vae: nn.Module) -> str:
    """Figures on the bundled images, in words."""
    x = torch.from_numpy(grid()["imgs"]).float().div(255).unsqueeze(1)
    posterior = vae.encode(x)
    recon = -vae.decode(posterior.mean).log_prob(x).mean()
    kl = posterior.kl(vae.prior).mean()
    error = (reconstruct(vae, x) - x).square().mean()
    baseline = (x.mean(0) - x).square().mean()
    return (
        f"on the bundled images, z = the mean: reconstruction {recon:.2f} nats, KL {kl:.2f} nats, "
        f"mean squared error {error:.5f} (mean image: {baseline:.5f})"
    )


def main() -> None:
    """Train one model and write it."""
    parser = argparse.ArgumentParser(description="Train a beta-VAE on random shapes.")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the KL (default 1)")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training images (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of images, weights and noise (default 0)")
    args = parser.parse_args()

    x = training_images(args.seed + 1)
    vae = untrained(args.seed)
    train(vae, x, args.beta, args.epochs)
    print(describe(vae))
    metadata = {f"vaeaudit.{name}": json.dumps(value) for name, value in FACTS.items()} | {
        "beta": f"{args.beta:g}",
        "training": f"examples/train.py on {IMAGES} random shapes of examples/shapes.py, Adam, learning rate "
        f"{LEARNING_RATE:g} to 0, beta from 0 over the first quarter, batches of {BATCH}, {args.epochs} epochs, "
        f"seed {args.seed}",
    }
    save_file(vae.state_dict(), args.out, metadata=metadata)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
