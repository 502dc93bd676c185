"""Data sets: one per file, held as tensors on the device; bytes are looked for in one order."""

import os
import shutil
from pathlib import Path

CACHE = Path(__file__).parent / "cache"


class DataError(Exception):
    """Data is missing or damaged; the text is for the user."""


def locate(folder: str) -> Path | None:
    """The folder in data/cache or else in $ARS_DATA, None if it is in neither."""
    places = [CACHE / folder]
    if os.environ.get("ARS_DATA"):
        places.append(Path(os.environ["ARS_DATA"]) / folder)
    return next((place for place in places if place.is_dir()), None)


def move_into_cache(made: Path, folder: str) -> Path:
    """Rename a complete folder to data/cache/<folder>, so that no other run sees half of it."""
    place = CACHE / folder
    try:
        os.rename(made, place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(made)  # another run fetched it first
    return place
