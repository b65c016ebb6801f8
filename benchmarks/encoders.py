"""Try FCN-8s with every model of timm as its encoder, and SMP's FPN beside it.

    python benchmarks/encoders.py try --shard 0/2     # hours; an interrupted run goes on where it was
    python benchmarks/encoders.py table               # writes docs/reference/encoders.md

Each encoder, without pretrained weights, is built; runs forward at 65 x 97 and at 1 x 1 pixels; runs backward in
training mode on a batch of two, after which each parameter must have a finite gradient; and is exported by
torch.export with dynamic batch, height and width. An encoder that would need too much arithmetic or memory is tried on
torch's meta device, which has shapes but no values.
"""

import argparse
import json
import signal
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from torch.export import Dim

INTRODUCTION = """\
# Encoders

<!-- Written by benchmarks/encoders.py; do not edit. -->

Every encoder of SMP and every model of timm can stand before an FCN:

```python
model = smp.create_model("fcn8s", encoder_name="convnext_tiny", encoder_weights="imagenet", classes=21)
```

`tu-convnext_tiny` is the same; of a bare name that both know, such as `resnet34`, SMP's encoder is meant. `"imagenet"`
stands for timm's own choice of weights, a tag in the name for another (`resnet50.a1_in1k`). Arguments that the network
does not know go to the model: `output_stride=8` where it can dilate, `img_size=448` where it is built for one size.
In a recipe they are the keys of `model.encoder_options`.

## Which maps are scored

FCN-8s scores maps of the strides 32, 16 and 8, coarse to fine; FCN-4s and 2s go on to 4 and 2.

* Where a model has a map of that stride, that map is taken.
* A plain vision transformer has one stride, 16 or so, in all its blocks. The maps after one, two, three and four
  quarters of the blocks stand for the strides 4, 8, 16 and 32, and keep their size: nothing is gained by making a map
  coarser.
* Strides that are no powers of two are taken as they are (PiT: 28, 14, 7).
* For a stride that is too fine for a model, its next coarser map stands in, with a score of its own. It is scored
  where it is: the score is linear, so that upsampling the scores gives what scoring the upsampled map would. FCN-2s
  with a ConvNeXt, whose finest map has stride 4, is FCN-4s with a second score of that map, no finer.
* What lies beyond stride 32 (LeViT's last stage) is not built, just as `encoder_depth=4` leaves stride 32 unbuilt.

## Which image sizes

The output has the height and width of the input, from one pixel on (in training, batch norms need more than one value
for each channel). What the network does for that is found
out when it is built, by passes without arithmetic; the column *image size* has four answers:

* **any**: the encoder gets the image as it is.
* **any, padded below n**: a smaller image is continued at the bottom and right by its border.
* **padded to multiples of n**: any image is; the scores are cropped again, and no pixel moves.
* **resized to n x n**: the model takes one size only, so the image is resized (and its aspect lost), and the scores are
  resized back. `img_size=(384, 512)` builds it for another size.

Models that timm can build for varying sizes (`dynamic_img_size`, `strict_img_size=False`) are built so.

## What was tried

{total} models of timm {timm} with random weights, torch {torch}, SMP {smp}, {date}, on two CPU cores, by

    make encoders

*Backward* is in training mode on two images of {height} x {width} pixels, and asks for a finite gradient of every
parameter. *Export* is `torch.export` with dynamic batch, height and width; an attempt ends after {patience} seconds,
and what was left when time was up, from small to large, is *not tried*. {shapes} models of more than some {weights}
million weights at this image size, or for large images of one size, are marked **shapes**: they would take this machine
too long, and were run on torch's meta device, which has shapes but no numbers.
"""
RESULTS = Path("runs/encoders")
PAGE = Path("docs/reference/encoders.md")
HEIGHT, WIDTH = 65, 97
WORK = 0.6e12
"""Weights times pixels of the input, up to which an encoder is run on the CPU."""
VALUES = "gemma4"
"""Beginning of the names whose passes depend on values: tried on the CPU, built for 96 x 96 pixels instead of 768."""
PATIENCE = 20
"""Seconds for one attempt."""


@contextmanager
def attempt(result, name):
    """Note under ``name`` of ``result`` whether what follows succeeds, and if not, why."""
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(PATIENCE)
    try:
        yield
        result[name] = "ok"
    except (Exception, TooSlowError) as error:
        result[name] = f"{type(error).__name__}: {error}".strip()[:300]
    finally:
        signal.alarm(0)


class TooSlowError(BaseException):
    """Not an Exception, which the network would take for an answer."""


def _too_slow(*_):
    raise TooSlowError(f"not done after {PATIENCE} s")


def build(arch, encoder, device, **options):
    with torch.device(device):
        return smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=3, **options).eval()


def check_size(model, batch, height, width, device):
    with torch.no_grad():
        shape = model(torch.rand(batch, 3, height, width, device=device)).shape
    assert shape == (batch, 3, height, width), f"the output has the shape {tuple(shape)}"


def check_backward(model, device):
    for parameter in model.decoder.parameters():  # scores of zero would stop the gradient
        torch.nn.init.normal_(parameter, std=0.01)
    model.train()
    model(torch.rand(2, 3, HEIGHT, WIDTH, device=device)).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    unused = [name for name, gradient in gradients.items() if gradient is None]
    if device == "cpu":
        assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
    return unused


def check_export(model, device):
    image = torch.rand(2, 3, HEIGHT, WIDTH, device=device)
    with torch.no_grad():
        torch.export.export(model, (image,), dynamic_shapes=(dict.fromkeys((0, 2, 3), Dim.DYNAMIC),))


def try_running(name):
    result = {}
    with attempt(result, "build"):
        model = build("fcn8s", f"tu-{name}", "meta")
    if result["build"] != "ok":
        return result
    result |= describe(model)
    model = place(model, name)
    device = result["device"] = next(model.parameters()).device.type
    with attempt(result, "forward"):
        check_size(model, 1, HEIGHT, WIDTH, device)
    with attempt(result, "one_pixel"):
        check_size(model, 1, 1, 1, device)
    with attempt(result, "backward"):
        result["unused"] = check_backward(model, device)
    return result


def try_exporting(name):
    result = {}
    with attempt(result, "export"):
        check_export(build("fcn8s", f"tu-{name}", "meta"), "meta")  # which traces shapes, not numbers
    return result


def try_fpn(name):
    result = {}
    with attempt(result, "fpn"):
        fpn = build("FPN", f"tu-{name}", "meta")
    if result["fpn"] == "ok":
        for key, size in (("fpn_128", (128, 128)), ("fpn_odd", (HEIGHT, WIDTH))):
            with attempt(result, key):
                check_size(fpn, 1, *size, "meta")
    return result


def place(model, name):
    """Build the network on the CPU, if that can bear it, in the place of the one on the meta device."""
    if name.startswith(VALUES):
        return build("fcn8s", f"tu-{name}", "cpu", img_size=96)
    return build("fcn8s", f"tu-{name}", "cpu") if describe(model)["work"] <= WORK else model


def describe(model):
    """Return what the table says of an encoder: its maps, those that are scored, and what sizes it takes."""
    encoder, sizes = model.encoder, model.any_size
    adapted = sizes(torch.empty(1, 3, HEIGHT, WIDTH, device="meta"))
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return {
        "strides": encoder.model.feature_info.reduction(),
        "taps": model.decoder.taps.strides,
        "sizes": type(sizes).__name__,
        "size": getattr(sizes, "smallest", None) or getattr(sizes, "multiple", None) or getattr(sizes, "size", None),
        "parameters": parameters,
        "work": parameters * adapted.shape[2] * adapted.shape[3],
    }


def run(shard, shards):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    weights = {}
    for trial in (try_running, try_fpn, try_exporting):
        path = RESULTS / f"{trial.__name__}-{shard}-of-{shards}.jsonl"
        results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        done = {result["encoder"] for result in results}
        weights |= {result["encoder"]: result.get("parameters", 0) for result in results if trial is try_running}
        with path.open("a") as file:
            # From small to large, as far as that is known: an export takes longest.
            for name in sorted(timm.list_models()[shard::shards], key=lambda name: weights.get(name, 0)):
                if name not in done:
                    started = time.perf_counter()
                    result = {"encoder": name} | trial(name)
                    result["seconds"] = round(time.perf_counter() - started, 1)
                    file.write(json.dumps(result) + "\n")
                    file.flush()


def table():
    results = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            results.setdefault(result.pop("encoder"), {}).update(result)
    missing = [name for name in timm.list_models() if name not in results]
    if missing:
        raise SystemExit(f"{len(missing)} encoders are not tried yet, {missing[0]} is the first.")
    PAGE.write_text("\n".join(page(dict(sorted(results.items())))) + "\n", encoding="utf-8")
    print(f"{PAGE} tells of {len(results)} encoders.")


def page(results):
    def count(key):
        return f"{sum(result.get(key) == 'ok' for result in results.values()):,}"

    total = f"{len(results):,}"
    yield from INTRODUCTION.format(
        total=total,
        timm=timm.__version__,
        torch=torch.__version__.partition("+")[0],
        smp=smp.__version__,
        date=time.strftime("%Y-%m-%d"),
        height=HEIGHT,
        width=WIDTH,
        shapes=f"{sum(result['device'] == 'meta' for result in results.values()):,}",
        weights=f"{WORK / HEIGHT / WIDTH / 1e6:.0f}",
        patience=PATIENCE,
    ).splitlines()
    yield ""
    yield "| | FCN-8s | SMP's FPN |"
    yield "|---|---:|---:|"
    yield f"| built | {count('build')} | {count('fpn')} |"
    yield f"| forward at 128 x 128 pixels | - | {count('fpn_128')} |"
    yield f"| forward at {HEIGHT} x {WIDTH} pixels | {count('forward')} | {count('fpn_odd')} |"
    yield f"| forward at one pixel | {count('one_pixel')} | - |"
    yield f"| backward, training mode, batch of 2 | {count('backward')} | - |"
    tried = sum("export" in result for result in results.values())
    yield f"| exported with dynamic sizes, of {tried:,} that were tried | {count('export')} | - |"
    yield ""
    yield from exceptions(results)
    yield "## The encoders"
    yield ""
    yield "| encoder | maps at strides | FCN-8s scores | image size | forward | backward | export |"
    yield "|---|---|---|---|---|---|---|"
    for name, result in results.items():
        yield (
            f"| {name} | {' '.join(map(str, result['strides']))} | {' '.join(map(str, result['taps']))} | "
            + " | ".join([sizes(result), *(verdict(result, key) for key in ("forward", "backward", "export"))])
            + " |"
        )


def sizes(result):
    size = result["size"]
    match result["sizes"]:
        case "AsItIs":
            return "any"
        case "Enlarged":
            return f"any, padded below {size}"
        case "Padded":
            return f"padded to multiples of {size[0]}"
        case "Resized":
            return f"resized to {size[0]} x {size[1]}"


def verdict(result, key):
    if key not in result:
        return "not tried"
    if result[key] != "ok":
        return "too slow" if "TooSlow" in result[key] else "no"
    return "yes" if result["device"] == "cpu" or key == "export" else "shapes"


def exceptions(results):
    """List, cause by cause, the encoders of which something is not ok."""
    causes = Counter()
    names = {}
    for name, result in results.items():
        for key, title in (
            ("build", "not built"),
            ("forward", "no forward pass"),
            ("one_pixel", "not at one pixel"),
            ("backward", "no backward pass"),
            ("export", "not exported"),
        ):
            if result.get(key, "ok") != "ok":
                reason = result[key].splitlines()[0][:160].replace("|", "/")
                cause = title, "not within 20 seconds here (more time may do)" if "TooSlow" in reason else f"`{reason}`"
                causes[cause] += 1
                names.setdefault(cause, []).append(name)
    yield "## Exceptions"
    yield ""
    for (title, cause), number in causes.most_common():
        yield f"* **{title}** ({number}): {cause}: {', '.join(names[title, cause])}"
    unused = [name for name, result in results.items() if result.get("unused")]
    yield (
        f"* **some parameters have no part in FCN-8s** ({len(unused)}), since they lead to maps that are not scored or"
        " not given out; training on several GPUs needs `strategy: ddp_find_unused_parameters_true`: "
        + ", ".join(unused)
    )
    yield ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["try", "table"])
    parser.add_argument("--shard", default="0/1", help="0/2 and 1/2, in two processes, for two halves")
    arguments = parser.parse_args()
    if arguments.command == "try":
        run(*map(int, arguments.shard.split("/")))
    else:
        table()
