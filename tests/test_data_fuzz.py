"""Data sets damaged at random: what comes is a sample of the right shape or one sentence that names a file."""

import io
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers import encode, random_label, write_voc
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_smp.data.camvid import CamVid
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.folder import ImageFolder, read_names
from fcn_smp.data.labels import Colors, Numbers
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError

LONG = 15
"""Seconds that nothing takes, whatever is wrong with the files."""

LIST, CLASSES = "list.txt", "classes.txt"
Files = dict[str, bytes | None]
"""Content of each file by its path; None for a folder."""


def picture(seed: int, form: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), form)


def label(seed: int, form: str, classes: int, void: int = 255) -> bytes:
    numbers = random_label(np.random.default_rng(seed), (12, 16), classes)
    image = Image.fromarray(np.where(numbers == 255, void, numbers).astype(np.uint8))
    image.putpalette(voc_palette().tobytes())
    return encode(image, form)


def folder_files() -> Files:
    files: Files = {LIST: b"a\nb\nc d.e\nf\n", CLASSES: b"0 0 0 ground\n128 0 0 road\n0 128 0 tree\n"}
    images = {"a": "JPEG", "b": "PNG", "c d.e": "BMP", "f": "TIFF", "g": "WEBP", "h": "GIF"}
    endings = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "GIF": "gif"}
    for seed, (id_, form) in enumerate(images.items()):
        lossless = form if form in ("BMP", "TIFF", "GIF") else "PNG"
        files[f"images/{id_}.{endings[form]}"] = picture(seed, form)
        files[f"labels/{id_}.{endings[lossless]}"] = label(seed, lossless, 3)
    return files


def voc_files() -> Files:
    with TemporaryDirectory() as root:
        folder = write_voc(Path(root), 2007, "abc", "", sizes=[(12, 16)])
        files: Files = {f"VOC2007/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.*g")}
    return files | {LIST: b"a\nb\nc\n"}


def camvid_files() -> Files:
    files: Files = {}
    for seed, id_ in enumerate(("0001TP_1", "0001TP_2", "0001TP_3")):
        files[f"CamVid/train/{id_}.png"] = picture(seed, "PNG")
        files[f"CamVid/trainannot/{id_}.png"] = label(seed, "PNG", 11, void=11)
    return files


def open_folder(root: Path, beside: Path) -> SegmentationDataset:
    names = {"ground": (0, 0, 0), "road": (128, 0, 0), "tree": (0, 128, 0)}
    return ImageFolder(root, str(beside / LIST), names, void=[(224, 224, 192)])


def open_drawn(root: Path, beside: Path) -> SegmentationDataset:
    return ImageFolder(root, "train", {"ground": 0, "road": 1, "tree": 2})


def open_voc(root: Path, beside: Path) -> SegmentationDataset:
    return VOCSegmentation(root, str(beside / LIST), 2007)


def open_camvid(root: Path, beside: Path) -> SegmentationDataset:
    return CamVid(root, "train")


Opener = Callable[[Path, Path], SegmentationDataset]
SETS: dict[str, tuple[Files, Opener]] = {
    "folder with a list": (folder_files(), open_folder),
    "folder": (folder_files(), open_drawn),
    "voc": (voc_files(), open_voc),
    "camvid": (camvid_files(), open_camvid),
}
OTHERS: list[bytes | None] = [
    b"", b"\0", b"noise" * 30, b"\xff\xfe\x00\x01", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"\x89PNG\r\n\x1a\n",
    b"P6\n0 0\n255\n", b"P5 3 2 255\n\0\1\2\0\1\2", b"PK\3\4", b"\x1f\x8b\x08\0", b"\xef\xbb\xbfa\n", b"../../a\n/b\n",
    label(9, "PNG", 3), picture(9, "PNG"), picture(9, "JPEG"), encode(Image.new("LA", (16, 12)), "PNG"),
    encode(Image.new("I;16", (16, 12)), "PNG"), encode(Image.new("F", (16, 12)), "TIFF"),
    encode(Image.new("CMYK", (16, 12)), "JPEG"), encode(Image.new("LAB", (16, 12)), "TIFF"),
    encode(Image.new("1", (1, 1)), "PNG"), None,
]  # fmt: skip
"""Files of other types; the last is a folder."""

BYTE = st.integers(0, 255)
PLACE = st.floats(0, 1, exclude_max=True)
HEAD = st.floats(0, 0.02)
FLIP = st.tuples(st.just("flip"), st.lists(st.tuples(PLACE | HEAD, BYTE), min_size=1, max_size=6))
CUT = st.tuples(st.just("cut"), PLACE)
INSERT = st.tuples(st.just("insert"), st.tuples(PLACE, st.binary(min_size=1, max_size=9)))
OTHER = st.tuples(st.just("other"), st.integers(0, len(OTHERS) - 1))
LOSE = st.tuples(st.just("lose"), st.none())
DAMAGE = FLIP | CUT | INSERT | OTHER | LOSE


def spoil(content: bytes, damage: tuple[str, object]) -> bytes:
    kind, how = damage
    match kind, how:
        case "flip", places:
            damaged = bytearray(content)
            for place, value in places if damaged else ():
                damaged[int(place * len(damaged))] = value
            return bytes(damaged)
        case "cut", place:
            return content[: int(place * len(content))]
        case "insert", (place, more):
            at = int(place * len(content))
            return content[:at] + more + content[at:]
    raise AssertionError(kind)


def damaged(files: Files, damages: list[tuple[float, tuple[str, object]]]) -> Files:
    files = dict(files)
    for which, damage in damages:
        path = list(files)[int(which * len(files))]
        content = files[path]
        if damage[0] == "lose":
            files[path] = b""
            if len(files) > 1:
                del files[path]
        elif damage[0] == "other":
            files[path] = OTHERS[int(damage[1])]
        elif content is not None:
            files[path] = spoil(content, damage)
    return files


def write(files: Files, root: Path) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def is_sentence(error: UserError, *places: object) -> None:
    message = str(error)
    assert "\n" not in message, message
    assert "Traceback" not in message, message
    assert message.endswith((".", "?")), message
    assert any(str(place) in message for place in places), message


def examine(opened: Callable[[], SegmentationDataset], *places: object) -> int:
    """Read everything; return the number of samples that could be read."""
    start = time.monotonic()
    read = 0
    try:
        dataset = opened()
    except UserError as error:
        is_sentence(error, *places)
        return 0
    for index in range(len(dataset)):
        try:
            image, numbers, _ = dataset[index]
        except UserError as error:
            is_sentence(error, *places)
        else:
            assert (image.dtype, numbers.dtype) == (np.uint8, np.uint8)
            assert numbers.ndim == 2
            assert numbers.size > 0
            assert image.shape == (*numbers.shape, 3)
            assert np.all((numbers < len(dataset.classes)) | (numbers == 255))
            read += 1
    assert time.monotonic() - start < LONG
    return read


pytestmark = pytest.mark.filterwarnings("ignore")
MANY = settings(deadline=None, max_examples=120)


@pytest.mark.parametrize(("files", "opened"), SETS.values(), ids=SETS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_undamaged_everything_is_read(tmp_path: Path, files: Files, opened: Opener, packed: bool) -> None:
    """Or else the tests below would prove nothing."""
    write(files, tmp_path)
    root = tmp_path
    if packed:
        root = tmp_path / "x.tar"
        root.write_bytes(tarred(files)[0])
    dataset = opened(root, tmp_path)
    assert examine(lambda: dataset, tmp_path) == len(dataset) >= 3


@pytest.mark.parametrize(("files", "opened"), SETS.values(), ids=SETS)
def test_damaged_files_are_read_or_named(files: Files, opened: Opener) -> None:
    @MANY
    @given(st.lists(st.tuples(PLACE, DAMAGE), min_size=1, max_size=4))
    def check(damages: list[tuple[float, tuple[str, object]]]) -> None:
        with TemporaryDirectory() as folder:
            write(damaged(files, damages), Path(folder))
            examine(lambda: opened(Path(folder), Path(folder)), folder)

    check()


# --- Archives


def tarred(files: Files) -> tuple[bytes, list[int]]:
    """Pack files; return the archive and where in it their headers begin."""
    buffer, heads = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content or b"")
            heads.append(buffer.tell())
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue(), heads


FIELDS = {"name": (0, 100), "mode": (100, 108), "size": (124, 136), "type": (156, 157), "magic": (257, 265)}
VALUES = {
    "name": st.binary(min_size=1, max_size=12)
    | st.sampled_from([b"/\0", b"../x\0", b"\0", b"x" * 100, b"\xff\xfe\n\0"]),
    "mode": st.binary(min_size=8, max_size=8),
    # Numbers that are not written in digits have a test of their own.
    "size": st.binary(min_size=12, max_size=12).filter(lambda size: size[0] < 128)
    | st.integers(0, 8**11 - 1).map(lambda size: b"%011o\0" % size)
    | st.sampled_from([b"-7\0", b"\0"]),
    "type": st.sampled_from(
        [b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"X", b"\0", b"Z"]
    ),
    "magic": st.binary(min_size=8, max_size=8),
}
HEADER = st.sampled_from([*FIELDS]).flatmap(lambda field: st.tuples(st.just(field), VALUES[field]))


def rewritten(archive: bytes, head: int, field: str, value: bytes) -> bytes:
    """Change a field of a header, and the checksum so that it fits."""
    header = bytearray(archive[head : head + 512])
    start, end = FIELDS[field]
    header[start : start + len(value[: end - start])] = value[: end - start]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return archive[:head] + bytes(header) + archive[head + 512 :]


@pytest.mark.parametrize(("files", "opened"), SETS.values(), ids=SETS)
def test_damaged_archives_are_read_or_named(files: Files, opened: Opener) -> None:
    content, heads = tarred(files)

    @MANY
    @given(st.lists(st.tuples(PLACE, HEADER) | FLIP | CUT | INSERT, min_size=1, max_size=3))
    def check(damages: list[tuple[object, object]]) -> None:
        archive = content
        for first, second in damages:
            if isinstance(first, float):
                archive = rewritten(archive, heads[int(first * len(heads))], *second)  # type: ignore[misc]
            else:
                archive = spoil(archive, (str(first), second))
        with TemporaryDirectory() as folder:
            write({LIST: b"a\nb\n", "x.tar": archive}, Path(folder))
            examine(lambda: opened(Path(folder, "x.tar"), Path(folder)), folder)

    check()


SIZES = {
    "beyond any file": (2**62, OSError),
    "beyond any number": (2**63, ValueError),
    "before the archive": (-(10**6), OSError),
    "in a circle": (-512, TimeoutError),
}


@pytest.mark.parametrize(
    "size",
    [pytest.param(size, id=name) for name, (size, error) in SIZES.items()],
)
def test_sizes_in_an_archive_that_cannot_be_are_named(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, opened = SETS["camvid"]
    content, heads = tarred(files)
    value = bytearray((size % 2**96).to_bytes(12, "big"))  # as tar writes what digits cannot hold
    value[0] |= 0x80
    (tmp_path / "x.tar").write_bytes(rewritten(content, heads[1], "size", bytes(value)))
    steps, step = [], tarfile.TarFile.next

    def counting(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        steps.append(None)
        if len(steps) > 1000:
            raise TimeoutError("there are 6 files, and no end")
        return step(archive)

    monkeypatch.setattr(tarfile.TarFile, "next", counting)
    assert examine(lambda: opened(tmp_path / "x.tar", tmp_path), tmp_path) < len(files) // 2


def test_archive_does_not_lose_images_in_silence(tmp_path: Path) -> None:
    files, opened = SETS["camvid"]
    files = {path: files[path] for path in sorted(files, key=lambda path: path.rpartition("/")[2])}
    content, heads = tarred(files)
    damaged = bytearray(content)
    damaged[heads[4] + 10] ^= 1  # in the name of the third image
    (tmp_path / "x.tar").write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "x.tar", tmp_path)
    is_sentence(caught.value, tmp_path / "x.tar")


@pytest.mark.parametrize("form", ["zip", "gztar", "bztar"])
@pytest.mark.parametrize(("files", "opened"), SETS.values(), ids=SETS)
def test_archive_of_another_form_is_named(tmp_path: Path, files: Files, opened: Opener, form: str) -> None:
    write(files, tmp_path / "x")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), form, tmp_path / "x"))
    content = archive.read_bytes()

    @settings(deadline=None, max_examples=8)
    @given(st.lists(FLIP | CUT | INSERT, max_size=3))
    @example([])
    def check(damages: list[tuple[str, object]]) -> None:
        damaged = content
        for damage in damages:
            damaged = spoil(damaged, damage)
        archive.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            opened(archive, tmp_path / "x")
        is_sentence(caught.value, archive)

    check()


# --- Lists and class files


LINE = st.text(max_size=30) | st.sampled_from(
    ["a", "b", "c d.e", "a.jpg", " f ", "..", "/", "a/", ".", "\0", "a" * 200]
)


@pytest.mark.parametrize("name", ["folder with a list", "voc"])
def test_lists_of_any_content_are_read_or_named(tmp_path: Path, name: str) -> None:
    files, opened = SETS[name]
    write(files, tmp_path)

    @MANY
    @given(st.lists(LINE, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")) | st.binary())
    def check(content: bytes) -> None:
        (tmp_path / LIST).write_bytes(content)
        examine(lambda: opened(tmp_path, tmp_path), tmp_path)

    check()


def test_line_of_a_list_that_is_too_long_for_a_name_is_named(tmp_path: Path) -> None:
    files, opened = SETS["voc"]
    write(files | {LIST: b"a\n" + b"b" * 300}, tmp_path)
    with pytest.raises(UserError) as caught:
        opened(tmp_path, tmp_path)
    is_sentence(caught.value, tmp_path)


# Colours beyond 255, and what is said of numbers and colours together, are in test_data_sets.py.
NUMBER = st.integers(0, 255).map(str) | st.sampled_from(["0", "128", "255", "-1", "1e3", "²", "٣", ""])
CLASS = (
    st.tuples(NUMBER, NUMBER, NUMBER, st.text(max_size=8)).map(" ".join)
    | st.tuples(NUMBER, NUMBER, NUMBER).map(lambda color: f"x:{','.join(color)}::")
    | st.text(max_size=9)
)


UNNAMED = ("by numbers or by colours", "stands for two classes")
"""Sentences that name the classes instead of a file."""


def test_class_files_of_any_content_are_read_or_named(tmp_path: Path) -> None:
    write(folder_files(), tmp_path)

    @MANY
    @given(st.lists(CLASS, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "replace")) | st.binary())
    def check(content: bytes) -> None:
        (tmp_path / CLASSES).write_bytes(content)
        examine(lambda: ImageFolder(tmp_path, "all", read_names(tmp_path / CLASSES)), tmp_path, *UNNAMED)

    check()


# --- Decoders alone, which reach deeper


FORMS = ["PNG", "GIF", "BMP", "TIFF", "TGA", "PCX", "PPM", "SGI", "WEBP"]


@pytest.mark.parametrize("form", FORMS)
def test_damaged_labels_are_decoded_or_named(form: str) -> None:
    image = Image.fromarray(random_label(np.random.default_rng(3), (12, 16), 3))
    if form in ("PNG", "GIF", "BMP", "TIFF", "TGA", "PCX"):
        image.putpalette(voc_palette().tobytes())
    content = encode(image.convert("RGB") if form == "WEBP" else image, form)
    decoders = [Numbers(range(3)), Numbers(range(3), channel=0), Colors([(0, 0, 0), (128, 0, 0), (0, 128, 0)])]

    @settings(deadline=None, max_examples=80)
    @given(st.lists(FLIP | CUT | INSERT, min_size=1, max_size=3))
    def check(damages: list[tuple[str, object]]) -> None:
        spoilt = content
        for damage in damages:
            spoilt = spoil(spoilt, damage)
        for decode in decoders:
            try:
                numbers = decode(spoilt, "x.y")
            except UserError as error:
                is_sentence(error, "x.y")
            else:
                assert (numbers.ndim, numbers.dtype) == (2, np.uint8)
                assert set(np.unique(numbers)) <= {0, 1, 2, 255}

    check()
