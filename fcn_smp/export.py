"""A network as one file that needs nothing of this package: ONNX, or torch.export's own format.

The file is written, then run on sizes that it was not traced with, and kept only if it gives what the network gives.
"""

import importlib.util
import json
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fcn_smp.data.transforms import Preprocess
from fcn_smp.errors import UserError
from fcn_smp.files import whole
from fcn_smp.models.any_size import Padded
from fcn_smp.segmenter import Segmenter

TOLERANCE = 1e-4
"""How far a logit may be off, relative to the largest one; docs/guides/export.md has the measurements behind it."""

ONNX_LIMIT = 2 * 10**9
"""Bytes of weights that an ONNX file holds: protobuf ends at 2 ** 31, and the graph needs some itself."""


class MismatchError(Exception):
    """The exported graph does not give what the network gives; no file was written."""


class Exported(NamedTuple):
    """What was found out about a file."""

    smallest: int
    """Smallest height and width that the graph takes, in pixels."""
    largest: float
    """Largest absolute logit of the network."""
    difference: float
    """Largest difference of a logit; for labels, how far the logit of one lies below the best at most."""
    differing: int
    """Number of labels that are not the network's; 0 where logits were exported."""
    pixels: int
    """Number of pixels that were compared."""


def export(
    segmenter: Segmenter, path: str | Path, *, format: str, with_preprocessing: bool = False, argmax: bool = False
) -> Exported:
    """Write the network as a graph for any batch, height and width, and check that it does the same.

    Its input is ``image``, float32 (N, C, H, W), normalised as ``segmenter.preprocessing`` says. Its output is
    ``logits``, float32 (N, classes, H, W), what the network gives, without the image's classes of ``aux_params``. The
    file also holds, as JSON, the ``classes``, their ``colors``, the ``threshold`` of a single logit, and the
    ``preprocessing`` that is left to the caller. Where that is to ``resize`` the image, the logits are of that size.

    Args:
        segmenter: The network with its preprocessing and classes, on the CPU.
        path: A file that is not there yet; it ends in ``.onnx`` or ``.pt2``.
        format: ``"onnx"`` or ``"torch_export"``.
        with_preprocessing: Let ``image`` be uint8 (N, 3, H, W), RGB, from 0 to 255.
        argmax: Let the output be ``labels`` (N, H, W), the most likely class of each pixel, uint8 for up to 256
            classes, else int64. Of a single logit it is 1 where the probability is above ``segmenter.threshold``.

    Returns:
        How near the file's answers are to the network's, and which sizes it takes.

    Raises:
        UserError: The file is there or misnamed, a package is missing, or the network cannot be exported.
        MismatchError: The file does not do what the network does; it is not kept.
    """
    path = Path(path)
    kind = _checked(segmenter, path, format, with_preprocessing)
    graph = _Graph(segmenter, with_preprocessing, argmax).eval()
    activation = _without_activation(segmenter.model) if argmax else nullcontext()
    # The exporters warn of what they do themselves.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"), activation, whole(path) as temporary:
        try:
            kind.write(_trace(graph, segmenter), graph.output, temporary, _about(segmenter, with_preprocessing))
            run = kind.open(temporary)
        except OSError:
            raise
        except Exception as error:  # whatever a model or an exporter raises where it cannot go on
            raise UserError(
                f"{segmenter.model.name} cannot become {format} of any batch, height and width: {_reason(error)}."
            ) from error
        return _verify(graph, segmenter, run)


class _Graph(nn.Module):
    """What is exported: the network, and what comes before and after it."""

    def __init__(self, segmenter: Segmenter, with_preprocessing: bool, argmax: bool) -> None:
        super().__init__()
        self.prepare = Preprocess(*segmenter.preprocessing).normalize if with_preprocessing else nn.Identity()
        self.model = segmenter.model
        self.argmax = argmax
        self.least = torch.tensor(segmenter.threshold).logit().item()
        self.input = torch.uint8 if with_preprocessing else torch.float32
        self.output = "labels" if argmax else "logits"

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes, H, W) or labels (N, H, W)."""
        logits = _logits(self.model, self.prepare(image))
        if not self.argmax:
            return logits
        if logits.shape[1] == 1:
            return (logits[:, 0] > self.least).to(torch.uint8)
        return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int64)


def _logits(model: SegmentationModel, image: Tensor) -> Tensor:
    logits: Tensor | tuple[Tensor, Tensor] = model(image)
    return logits[0] if isinstance(logits, tuple) else logits  # the second are those of aux_params


@contextmanager
def _without_activation(model: SegmentationModel) -> Iterator[None]:
    """Let the network give its logits: an activation hides by how much a class is ahead, of a single one even that."""
    head = model.segmentation_head
    activation, head[-1] = head[-1], nn.Identity()
    try:
        yield
    finally:
        head[-1] = activation


def _random_image(segmenter: Segmenter, dtype: torch.dtype, batch: int, height: int, width: int) -> Tensor:
    """Draw images (N, C, H, W): uint8, or float32 that spread as normalised ones do."""
    generator = torch.Generator().manual_seed(height * width)
    shape = (batch, _channels(segmenter), height, width)
    if dtype == torch.uint8:
        return torch.randint(256, shape, dtype=dtype, generator=generator)
    mean, std, _, (_, high), _ = segmenter.preprocessing
    return (high * torch.rand(shape, generator=generator) - sum(mean) / len(mean)) / (sum(std) / len(std))


def _channels(segmenter: Segmenter) -> int:
    channels: int = segmenter.model.config["in_channels"]
    return channels


def _about(segmenter: Segmenter, with_preprocessing: bool) -> dict[str, str]:
    about = {
        "classes": segmenter.classes,
        "colors": segmenter.palette[: len(segmenter.classes)].tolist(),
        "preprocessing": None if with_preprocessing else segmenter.preprocessing._asdict(),
    }
    about |= segmenter.chosen
    return {key: json.dumps(value) for key, value in about.items()}


def _traced(segmenter: Segmenter) -> tuple[int, int, int]:
    """Return the batch, height and width with which the graph is recorded."""
    # No side is a multiple of 2 or of the other, and none fits into one window of an encoder that pads to windows, so
    # that no coincidence becomes part of the graph.
    sizes = segmenter.model.any_size
    window = max(sizes.multiple) if isinstance(sizes, Padded) else 0
    return 2, 131 + window, 163 + window


def _trace(graph: _Graph, segmenter: Segmenter) -> ExportedProgram:
    # Not Dim(min=...): the smallest size is found by running the file, whatever the encoder's arithmetic demands.
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    image = _random_image(segmenter, graph.input, *_traced(segmenter))
    program = torch.export.export(graph, (image,), dynamic_shapes={"image": sizes})
    # ONNX would drop the bound, and larger images give something else.
    if bounded := [bounds.upper for bounds in program.range_constraints.values() if bounds.upper < 2**31]:
        raise ValueError(f"it takes {min(bounded)} pixels at most")
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of source and the folders that they lie in
    return program


Runner = Callable[[Tensor], Tensor]
"""Runs a file: the graph's input to its output."""


def _write_onnx(program: ExportedProgram, output: str, path: Path, about: dict[str, str]) -> None:
    import onnx

    axes = {0: "batch", 2: "height", 3: "width"}
    exported = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=[output],
        dynamic_shapes={"image": axes},
        dynamo=True,
        verbose=False,
    )
    assert exported is not None  # as it is without dynamo
    exported.model.metadata_props.update(about)
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # the same for each node, and more
    # Not exported.save, which puts weights of 1.5 GB and more into a second file.
    onnx.save(exported.model_proto, path)


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # that a size is too small is found out, not reported
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _write_torch_export(program: ExportedProgram, output: str, path: Path, about: dict[str, str]) -> None:
    torch.export.save(program, path, extra_files=about)


def _open_torch_export(path: Path) -> Runner:
    return torch.export.load(path).module()


class Format(NamedTuple):
    """A kind of file."""

    suffix: str
    """How its name ends."""
    write: Callable[[ExportedProgram, str, Path, dict[str, str]], None]
    """Takes a program, the name of its output, the file, and what the file is to say about itself."""
    open: Callable[[Path], Runner]
    """Takes the file, and gives what runs it."""
    packages: tuple[str, ...]
    """What both need of the extra ``export``."""


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _open_onnx, ("onnx", "onnxruntime", "onnxscript")),
    "torch_export": Format(".pt2", _write_torch_export, _open_torch_export, ()),
}


def default_path(source: str, format: str) -> Path:
    """Return where the graph of a run or model directory goes, into it; that of a model of the Hub comes here."""
    directory = Path(source)
    name = directory.resolve().name + FORMATS[format].suffix
    return directory / name if directory.is_dir() else Path(name)


def _checked(segmenter: Segmenter, path: Path, format: str, with_preprocessing: bool) -> Format:
    """Return the format, if nothing is in the way."""
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}; it may be {' or '.join(FORMATS)}.")
    kind = FORMATS[format]
    if path.suffix != kind.suffix:
        raise UserError(f"{path} should end in {kind.suffix}, as files of {format} do.")
    if path.exists():
        raise UserError(f"{path} is there already; name another file with --output.")
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'--format {format} needs {" and ".join(missing)}: pip install "fcn_smp[export]".')
    if with_preprocessing and _channels(segmenter) != 3:
        raise UserError(
            f"{segmenter.model.name} takes {_channels(segmenter)} channels, and its preprocessing is for 3."
        )
    if with_preprocessing and segmenter.preprocessing.resize:
        size = "x".join(map(str, segmenter.preprocessing.resize))
        raise UserError(
            f"{segmenter.model.name} sees every image stretched to {size}, which the exported graph does not do; leave"
            " --with-preprocessing out."
        )
    tensors = [*segmenter.model.parameters(), *segmenter.model.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise UserError("The network must be on the CPU; Segmenter.load puts it there.")
    size = sum(tensor.nbytes for tensor in tensors)
    if format == "onnx" and size > ONNX_LIMIT:
        raise UserError(f"{size / 1e9:.1f} GB of weights are too many for one ONNX file; take --format torch_export.")
    return kind


def _verify(graph: _Graph, segmenter: Segmenter, run: Runner) -> Exported:
    """Find the smallest size, then compare on sizes of every kind.

    Raises:
        MismatchError: An image is refused, or what comes of it is not what the network gives.
    """

    def takes(size: int) -> bool:
        try:
            _compare(graph, segmenter, run, 1, size, size)
        except Exception:  # of the network, which may have a smallest size itself, or of the graph
            return False
        return True

    smallest = 1 + bisect_left(range(1, _traced(segmenter)[1]), True, key=takes)
    multiple = 64 * math.ceil(smallest / 64)
    shapes = [
        (1, smallest, smallest),
        (3, smallest + 1, smallest + 30),
        (1, multiple + 64, multiple),  # where maps are halved without a rest
        (1, 375, 500),  # a photograph of PASCAL VOC
    ]
    results = (_compare(graph, segmenter, run, *shape) for shape in shapes)
    largest, difference, differing = zip(*results, strict=True)
    return Exported(smallest, max(largest), max(difference), sum(differing), sum(map(math.prod, shapes)))


def _compare(
    graph: _Graph, segmenter: Segmenter, run: Runner, batch: int, height: int, width: int
) -> tuple[float, float, int]:
    """Return ``largest``, ``difference`` and ``differing`` of ``Exported`` for random images of one size."""
    image = _random_image(segmenter, graph.input, batch, height, width)
    logits = _expected(segmenter, image)
    what = f"{batch} image{'s' * (batch > 1)} of {height} x {width} pixels"
    try:
        given = run(image)
    except Exception as error:  # whatever a runtime raises
        raise MismatchError(
            f"The exported graph does not take {what}, so no file was written: {_reason(error)}."
        ) from error
    difference, differing = _difference(given, logits, graph)
    largest = logits.abs().max().item()
    # Put so that NaN is no agreement.
    if not difference <= TOLERANCE * largest:
        raise MismatchError(
            f"The exported graph is {difference:.2g} off on {what}, so no file was written; the largest logit is"
            f" {largest:.2g}, and {TOLERANCE:g} of that would be allowed."
        )
    return largest, difference, differing


def _expected(segmenter: Segmenter, image: Tensor) -> Tensor:
    """Return the network's logits of the graph's input, prepared as for training where it is uint8."""
    if image.dtype == torch.uint8:
        preprocess = Preprocess(*segmenter.preprocessing)
        image = torch.stack([preprocess(single.permute(1, 2, 0).numpy()) for single in image])
    return _logits(segmenter.model, image)


def _difference(given: Tensor, logits: Tensor, graph: _Graph) -> tuple[float, int]:
    """Hold the graph's output against the network's logits (N, classes, H, W); count the labels that differ.

    A wrong label is as far off as the logit of its class lies below the best.
    """
    if given.shape != (logits[:, 0] if graph.argmax else logits).shape:
        return math.inf, 0
    if not graph.argmax:
        return (given - logits).abs().max().item(), 0
    if logits.shape[1] == 1:
        logits = torch.cat([torch.full_like(logits, graph.least), logits], 1)
    best, labels = logits.max(1)
    chosen = logits.gather(1, given.long()[:, None])[:, 0]
    return (best - chosen).max().item(), int((given != labels).sum())


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
