"""From a recipe to the parts of a run: the network and what it starts from, the loss, the loaders."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fcn_smp.data.class_weights import ClassCounts, cached_counts, class_weights
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.splitting import shared_samples
from fcn_smp.errors import UserError
from fcn_smp.losses import SegmentationLoss
from fcn_smp.models.base import Network
from fcn_smp.models.encoder import Preprocessing, encoder_preprocessing
from fcn_smp.optim import freeze
from fcn_smp.recipe import Model, Recipe
from fcn_smp.registry import ARCHITECTURES
from fcn_smp.segmenter import Segmenter
from fcn_smp.weights import transfer


class Parts(NamedTuple):
    """All that a run is made of, built and checked before anything is written.

    Attributes:
        model: The network, with the weights that it starts from.
        frozen: Its parameters that are not trained, or not from the start.
        loss: Loss of logits and labels.
        train: What it is trained on.
        val: What it is validated on.
        preprocessing: What it expects of its input.
        fingerprints: Of both data sets, by ``train`` and ``val``.
        notes: What the user should know of it.
    """

    model: Network
    frozen: list[nn.Parameter]
    loss: SegmentationLoss
    train: SegmentationDataset
    val: SegmentationDataset
    preprocessing: Preprocessing
    fingerprints: dict[str, str]
    notes: list[str]


def build(recipe: Recipe, world: int = 1) -> Parts:
    """Build all parts of a run that so many processes share.

    Raises:
        UserError: Something does not fit; the message names it.
    """
    torch.manual_seed(recipe.seed)
    train_set, val_set = recipe.data.load(recipe.data.train), recipe.data.load(recipe.data.val)
    _refuse_overlap(recipe, train_set, val_set)
    _check_batch(recipe, len(train_set), world)
    if recipe.data.cache:
        train_set, val_set = train_set.in_memory(), val_set.in_memory()
    fingerprints = {"train": train_set.fingerprint(), "val": val_set.fingerprint()}
    counts = cached_counts(train_set, fingerprints["train"])
    model, frozen, usual, notes = build_network(recipe, train_set.classes)
    if not counts.pixels.sum():
        raise UserError(
            f"The split {recipe.data.train} has no labelled pixel; fcn-smp data check tells what labels hold."
        )
    missing = [name for name, pixels in zip(train_set.classes, counts.pixels, strict=True) if not pixels]
    if missing and recipe.model.binary:
        raise UserError(
            f"The split {recipe.data.train} has not a pixel of {missing[0]}; see what the labels hold by fcn-smp data"
            " check (255 is void, unless data.names gives it to a class)."
        )
    if missing:
        notes.append(f"The split {recipe.data.train} has not a pixel of {', '.join(missing)}.")
    asked = {key: value for key, value in recipe.preprocessing if value is not None}
    options = recipe.loss
    loss = SegmentationLoss(
        _class_weights(recipe, train_set.classes, counts),
        IGNORE_INDEX,
        **options.model_dump(exclude={"class_weights"}),
        binary=recipe.model.binary,
    )
    return Parts(model, frozen, loss, train_set, val_set, usual._replace(**asked), fingerprints, notes)


def _check_batch(recipe: Recipe, images: int, world: int) -> None:
    batch, accumulate = recipe.trainer.batch_size, recipe.trainer.accumulate
    if recipe.augmentation is None and recipe.preprocessing.resize:
        height, width = recipe.preprocessing.resize
        raise UserError(
            "augmentation must not be null where preprocessing.resize is set; without any it is {crop:"
            f" [{height}, {width}], scale: [1, 1], flip: 0, color_jitter: 0}}."
        )
    if recipe.augmentation is None and batch > world:
        raise UserError(
            f"trainer.batch_size must be {world} where augmentation is null, since whole images differ in size."
        )
    if batch % (world * accumulate):
        raise UserError(
            f"trainer.batch_size is {batch}; it should be a multiple of {world * accumulate}, for {world}"
            f" device{'s' * (world > 1)} with trainer.accumulate {accumulate}."
        )
    if images < batch:
        raise UserError(
            f"trainer.batch_size is {batch}, but the split {recipe.data.train} has only {images} images; it should be"
            " that or less."
        )


def build_network(
    recipe: Recipe, classes: Sequence[str]
) -> tuple[Network, list[nn.Parameter], Preprocessing, list[str]]:
    """Build the network with the weights that it starts from.

    Returns:
        The network, its parameters that were frozen, what its weights expect of the input, and notes on where they
        come from.

    Raises:
        UserError: A key or value of ``model`` is wrong.
    """
    try:
        model, preprocessing, notes = _model(recipe, classes)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        freeze(model, recipe.model.frozen)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"model: {str(error).splitlines()[0]}") from error
    return model, [parameter for parameter in trained if not parameter.requires_grad], preprocessing, notes


def check_stages(recipe: Recipe) -> None:
    """Build the networks of all stages, and let each start from the one before, without anybody's weights.

    Raises:
        UserError: A mistake in a later stage, which should not wait for the earlier ones.
    """
    before: Network | None = None
    for name, stage in recipe.staged().items():
        bare = stage.model.model_copy(update={"init_from": None, "encoder_weights": None})
        train_set, val_set = stage.data.open(stage.data.train), stage.data.open(stage.data.val)
        _refuse_overlap(stage, train_set, val_set)
        model = build_network(stage.model_copy(update={"model": bare}), train_set.classes)[0]
        if before and "init_from" not in recipe.stages[name].get("model", {}):
            try:
                transfer(before, model)
            except ValueError as error:
                raise UserError(f"stages.{name}: {error}") from error
        before = model


def _refuse_overlap(recipe: Recipe, train_set: SegmentationDataset, val_set: SegmentationDataset) -> None:
    shared = shared_samples(train_set, val_set)
    if shared and not recipe.data.allow_overlap:
        subject = "1 image is" if len(shared) == 1 else f"{len(shared)} images are"
        raise UserError(
            f"{subject} in both splits, data.train and data.val, such as {shared[0]}; choose splits that do not"
            " overlap, or set data.allow_overlap: true."
        )


def _model(recipe: Recipe, classes: Sequence[str]) -> tuple[Network, Preprocessing, list[str]]:
    build, options = ARCHITECTURES[recipe.model.arch], _options(recipe.model)
    if recipe.model.binary and len(classes) != 2:
        raise ValueError(
            f"binary is for two classes, and the data has {len(classes)}; choose one by data.classes, such as"
            f" {{{classes[-1]}: [{classes[-1]}]}}."
        )
    source = recipe.model.init_from and Segmenter.load(recipe.model.init_from)
    if source:
        options |= {key: None for key in ("encoder_weights", "decoder_hidden_weights") if key in options}
    scores = 1 if recipe.model.binary else len(classes)
    model = build(**options, classes=scores, **recipe.model.encoder_options)
    if not source:
        return model, encoder_preprocessing(recipe.model.encoder_name, recipe.model.encoder_weights), []
    notes = list(_notes(recipe, source, classes, transfer(source.model, model)))
    return model, source.preprocessing._replace(resize=None), notes


def _options(model: Model) -> dict[str, Any]:
    """Return the arguments of the network, of which each takes its own.

    Raises:
        ValueError: A key is set that it does not take.
    """
    taken = inspect.signature(ARCHITECTURES[model.arch]).parameters
    options = {}
    for key, field in Model.model_fields.items():
        value = getattr(model, key)
        if key.startswith("decoder_") and value != field.default and key not in taken:
            raise ValueError(f"{model.arch} has no {key}; leave it out.")
        if key in taken and (key.startswith("encoder_") or value != field.default):
            options[key] = value
    return options


def _notes(recipe: Recipe, source: Segmenter, classes: Sequence[str], untrained: list[str]) -> Iterator[str]:
    if untrained:
        yield f"Starts untrained: {', '.join(untrained)}."
    if len(source.classes) == len(classes) and source.classes != tuple(classes):
        yield f"{recipe.model.init_from} knows other classes; their scores are taken over by number."
    alignment = source.model.config.get("decoder_alignment")
    if alignment not in (None, recipe.model.decoder_alignment):
        yield (
            f"{recipe.model.init_from} has decoder_alignment={alignment}, this network"
            f" {recipe.model.decoder_alignment}: the weights fit, the numbers differ."
        )


def _class_weights(recipe: Recipe, classes: Sequence[str], counts: ClassCounts) -> list[float] | None:
    asked = recipe.loss.class_weights
    if asked is None:
        return None
    if isinstance(asked, str):
        return class_weights(counts, asked)
    if isinstance(asked, dict):
        for name in asked:
            if name not in classes:
                raise UserError(
                    f"loss.class_weights: there is no class {name!r}; the classes are {', '.join(classes)}."
                )
        asked = [asked.get(name, 1.0) for name in classes]
    if len(asked) != len(classes):
        raise UserError(
            f"loss.class_weights has {len(asked)} numbers; it should have {len(classes)}, one for each class."
        )
    if not any(asked):
        raise UserError("loss.class_weights are all 0; one of them at least should be more.")
    return asked
