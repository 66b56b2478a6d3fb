"""The files of statistics that a recipe goes by, each opened once."""

from __future__ import annotations

from compressor.calibration.statistics import Statistics
from compressor.methods.structured_cut import StructuredCut
from compressor.recipe.model import Recipe


def open_all(recipe: Recipe) -> dict[int, Statistics]:
    """The statistics of each cut and stage that goes by some, by its number. InputError for a damaged file."""
    opened: dict[tuple[str, bool], Statistics] = {}
    by_number = {}
    wanted = [
        *((cut.stats if isinstance(cut, StructuredCut) else None, False) for cut in recipe.cuts),
        *((stage.stats, stage.scored) for stage in recipe.stages),
    ]
    for number, (path, scored) in enumerate(wanted):
        if path is not None:
            if (path, scored) not in opened:
                opened[path, scored] = _open(path, scored)
            by_number[number] = opened[path, scored]
    return by_number


def _open(path: str, scored: bool) -> Statistics:
    if scored:
        from compressor.calibration.scores import open_scores

        return open_scores(path)
    from compressor.calibration.imatrix import open_layers

    return open_layers(path)


def files_of(recipe: Recipe) -> list[str]:
    """The files of statistics and scores that the recipe names."""
    cuts = [cut.stats for cut in recipe.cuts if isinstance(cut, StructuredCut)]
    return sorted({path for path in (*cuts, *(stage.stats for stage in recipe.stages)) if path is not None})
