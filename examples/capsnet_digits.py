"""CapsNet on scikit-learn's handwritten digits, with Lamina's routing and with plain PyTorch's.

    python examples/capsnet_digits.py [--epochs 12] [--picture capsnet_digits.png]

Both networks start from one seed, see the same batches and take their steps in turn; only the
routing layer differs. Prints losses, test accuracy, step times and what each saves for the backward
pass; draws the loss curves, and test digits above their reconstructions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from lamina.demo import TESTED, digits
from lamina.losses import MarginLoss
from lamina.models import CapsNet

SEED, BATCH = 0, 64
SHAPE = {"image": (1, 8, 8), "filters": 64, "kernel_size": 3, "primary": 32, "hidden": (128, 256)}
RECONSTRUCTION_WEIGHT = 0.0005 * 64  # The paper's, on the mean over 64 pixels.


class PlainRouting(nn.Module):
    """Dynamic routing as einsum and autograd write it: the votes are stored."""

    def __init__(self, in_capsules: int, out_capsules: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(out_capsules, in_capsules, out_dim, in_dim))

    def forward(self, u: Tensor) -> Tensor:
        votes = torch.einsum("bid,oied->bioe", u, self.weight)
        logits = votes.new_zeros(votes.shape[:3])
        for t in range(3):
            s = torch.einsum("bio,bioe->boe", logits.softmax(2), votes)
            q = s.square().sum(-1, keepdim=True)
            v = q.sqrt() / (1 + q) * s
            if t < 2:
                logits = logits + torch.einsum("bioe,boe->bio", votes, v)
        return v


def make(plain: bool) -> CapsNet:
    torch.manual_seed(SEED)
    model = CapsNet(**SHAPE)
    if plain:
        given = model.routing
        model.routing = PlainRouting(
            given.in_capsules, given.out_capsules, given.in_dim, given.out_dim
        )
        model.routing.weight = given.weight
    return model


def losses(model: CapsNet, x: Tensor, y: Tensor) -> Tensor:
    capsules = model(x)
    error = (model.reconstruct(capsules, y) - x).square().mean()
    return MarginLoss()(model.lengths(capsules), y) + RECONSTRUCTION_WEIGHT * error


def saved_bytes(model: CapsNet, x: Tensor) -> int:
    """What the routing layer keeps for the backward pass, beyond its input and weight."""
    u = model.squash(torch.randn(len(x), model.routing.weight.shape[1], 8)).requires_grad_()
    known = {u.data_ptr(), model.routing.weight.data_ptr()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.routing(u)
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--picture", default="capsnet_digits.png")
    options = parser.parse_args()
    pixels, labels = digits()
    pixels = pixels.view(-1, 1, 8, 8)
    models = {"plain": make(plain=True), "lamina": make(plain=False)}
    optimizers = {name: torch.optim.Adam(m.parameters(), lr=2e-3) for name, m in models.items()}
    curves = {name: [] for name in models}
    seconds = {name: [] for name in models}
    generator = torch.Generator().manual_seed(SEED)
    for epoch in range(options.epochs):
        order = TESTED + torch.randperm(len(labels) - TESTED, generator=generator)
        for rows in order.split(BATCH):
            for name, model in models.items():
                begin = time.perf_counter()
                optimizers[name].zero_grad()
                loss = losses(model, pixels[rows], labels[rows])
                loss.backward()
                optimizers[name].step()
                curves[name].append(loss.item())
                seconds[name].append(time.perf_counter() - begin)
        print(f"epoch {epoch + 1}: " + ", ".join(f"{n} {c[-1]:.5f}" for n, c in curves.items()))
    x, y = pixels[:TESTED], labels[:TESTED]
    for name, model in models.items():
        with torch.no_grad():
            right = (model.lengths(model(x)).argmax(1) == y).float().mean().item()
        step = 1e3 * statistics.median(seconds[name])
        saved = saved_bytes(model, x[:BATCH]) / 1e6
        print(f"{name:>6}: accuracy {right:.1%}, step {step:.1f} ms, routing saves {saved:.2f} MB")
    draw(options.picture, curves, x, models["lamina"])


def draw(path: str, curves: dict[str, list[float]], x: Tensor, model: CapsNet) -> None:
    from matplotlib.figure import Figure

    with torch.no_grad():
        drawn = model.reconstruct(model(x[:10]))
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplot_mosaic([["curves", "digits", "digits"]])
    for style, (name, curve) in zip(("-", "--"), curves.items()):
        axes["curves"].plot(curve, style, label=name)
    axes["curves"].set(yscale="log", xlabel="step", ylabel="training loss")
    axes["curves"].legend()
    rows = torch.cat([torch.cat(list(images.squeeze(1)), 1) for images in (x[:10], drawn)])
    axes["digits"].imshow(rows, cmap="gray")
    axes["digits"].set_title("test digits and their reconstructions")
    axes["digits"].axis("off")
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
