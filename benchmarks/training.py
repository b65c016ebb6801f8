"""What the training loop and its options cost beside a plain PyTorch loop, on the same batch in one process.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--encoder resnet18] [--crop 320] [--batch 8] [--rounds 5]

Prints the time of a step as a ratio to the plain loop's (bfloat16 autocast where the recipe's precision auto takes it),
the median over the rounds, in each of which all take their turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.recipe import Recipe, load_recipe
from fcn_smp.training.learner import Learner
from fcn_smp.training.parts import build
from fcn_smp.training.processes import launch
from fcn_smp.training.stopwatch import Stopwatch

VARIANTS: dict[str, list[str]] = {
    "as the recipe has it": [],
    "trainer.precision: fp32": ["trainer.precision=fp32"],
    "trainer.channels_last: false": ["trainer.channels_last=false"],
    "trainer.compile: true": ["trainer.compile=true"],
    "trainer.accumulate: 2": ["trainer.accumulate=2"],
    "trainer.gradient_clip: 1": ["trainer.gradient_clip=1"],
    "trainer.ema: 0.999": ["trainer.ema=0.999"],
    "trainer.deterministic: true": ["trainer.deterministic=true"],
    "optimizer.fused: true": ["optimizer.fused=true"],
    "model.frozen: [encoder]": ["model.frozen=[encoder]"],
    "loss.class_weights": ["loss.class_weights=median_frequency"],
    "loss.ohem: 0.25": ["loss.ohem=0.25"],
    "loss.terms: {dice: 1}": ["loss.terms={dice: 1}"],
    "loss.terms: {lovasz: 1}": ["loss.terms={lovasz: 1}"],
    "loss.terms: {focal: 1}": ["loss.terms={focal: 1}"],
}
Take = Callable[[torch.Tensor, torch.Tensor], None]


def plain(recipe: Recipe) -> Take:
    """Return a step as one writes it by hand."""
    fabric = launch(recipe.trainer)
    model = build(recipe).model.to(fabric.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        model.train()
        with fabric.autocast():
            logits = model(images)
        F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(recipe: Recipe) -> Take:
    """Return a step of the training loop."""
    fabric = launch(recipe.trainer)
    learner = Learner(fabric, recipe, build(recipe), steps_per_epoch=1000)
    learner.begin_epoch(0)
    watch = Stopwatch(fabric.device)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.use_deterministic_algorithms(recipe.trainer.deterministic)
        images = images.contiguous(memory_format=learner.memory_format)
        learner.learn(images, labels, learner.loss.normalizer(labels), 0, watch).tolist()
        torch.use_deterministic_algorithms(False)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    usual = [
        f"model.encoder_name={options.encoder}", "model.encoder_weights=null", f"augmentation.crop={options.crop}",
        f"trainer.batch_size={options.batch}", "trainer.workers=0",
    ]  # fmt: skip
    recipes = {name: load_recipe("demo", [*usual, *more]) for name, more in VARIANTS.items()}
    contestants = {"a plain loop": plain(recipes["as the recipe has it"])}
    contestants |= {name: ours(recipe) for name, recipe in recipes.items()}
    classes = 7
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.crop, options.crop).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (options.batch, options.crop, options.crop))
    labels[torch.rand(labels.shape) < 0.05] = IGNORE_INDEX
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(options.rounds + 1):
        for name, step in contestants.items():
            started = time.perf_counter()
            step(images, labels)
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{options.encoder}, {options.batch} crops of {options.crop}x{options.crop}, torch {torch.__version__}")
    print(f"{'a plain loop':30} {medians['a plain loop']:7.3f} s a step")
    for name in VARIANTS:
        print(f"{name:30} {medians[name] / medians['a plain loop']:7.2f}")


if __name__ == "__main__":
    main()
