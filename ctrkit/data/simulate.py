"""A realistic click log with no download, and the true click probability of every row.

Users see items on sites, on devices, through two weeks. Popularity follows power laws, some items appear only late, and
whether a user clicks depends on single fields, on pairs (interest x category, interest x tags, country x brand, device x
position, category x time of day, interest x price) and on triples (interest x device x time of day). A share of the labels is
flipped. ``true_probability`` is P(click = 1 | all fields of the row), so no model can expect a better logloss than it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ctrkit.errors import CtrkitError

CTR = 0.2
LABEL_NOISE = 0.02
"""Share of labels that are flipped."""

START = 1_735_689_600_000  # 2025-01-01 00:00 UTC, in milliseconds
DAYS = 14
PART_ROWS = 1_000_000
_BLOCK_ROWS = 1 << 16
"""Random numbers are drawn a block at a time, each from a generator of its own: a row depends on the seed, the number of rows and its place alone."""

README = """# A simulated click log

`ctrkit data simulate --rows {rows} --seed {seed}`: {rows:,} impressions in the order of time, {users:,} users, {items:,} items.

| column | what |
|---|---|
| `timestamp` | milliseconds since 1970; two weeks |
| `user_id`, `interest`, `country`, `age` | the user; `age` is missing for one in five |
| `visits` | how often the user came before, a skewed count |
| `item_id`, `category`, `brand`, `tags`, `price` | the item; some have no tags, some no price, and 3 in 10 appear only late |
| `site`, `device`, `position`, `hour` | the context |
| `click` | the label: clicked or not |
| `true_probability` | P(click = 1) given all the columns above. Not a feature: the yardstick of the best reachable AUC and logloss |
"""


@dataclass(frozen=True)
class Simulation:
    """What was written."""

    folder: Path
    files: list[Path]
    rows: int
    users: int
    items: int
    ctr: float


def simulate(
    rows: int,
    seed: int,
    out_dir: str | Path,
    *,
    file_format: Literal["parquet", "csv"] = "parquet",
    progress: Callable[[int], None] | None = None,
) -> Simulation:
    """Writes a log as ``part-00000.parquet`` and so on, of about a million rows each, in the order of time.

    The same rows and seed give the same log. About 100 MB of memory whatever the number of rows.

    Args:
        file_format: in CSV, tags are joined by ``|``.
        progress: told the number of rows written so far.

    Raises:
        CtrkitError: fewer than 1,000 rows, files of an earlier log in ``out_dir``, or no folder can be made there.
    """
    if rows < 1000:
        raise CtrkitError(f"{rows} rows are too few to simulate", "Ask for at least 1,000")
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CtrkitError(f"the folder '{folder}' cannot be made: {error.strerror}", "Name a folder that can be written") from error
    if any(folder.glob("part-*")):
        raise CtrkitError(f"'{folder}' already holds a log", "Name another folder, or delete it")
    world = World(rows, seed)
    files: list[Path] = []
    clicks = done = 0
    for part, frames in enumerate(_parts(world)):
        files.append(folder / f"part-{part:05d}.{file_format}")
        for frame in _written(frames, files[-1], file_format):
            clicks += int(frame["click"].sum())
            done += frame.height
            if progress:
                progress(done)
    (folder / "README.md").write_text(README.format(rows=rows, seed=seed, users=world.users, items=world.items), encoding="utf8")
    return Simulation(folder, files, rows, world.users, world.items, clicks / rows)


def latest(files: list[Path] | list[str], rows: int) -> pl.DataFrame:
    """``click`` and ``true_probability`` of the last rows of a simulated log in Parquet: of the test split, if split by time."""
    return pl.concat([pl.scan_parquet(file).select("click", "true_probability") for file in sorted(files)]).tail(rows).collect()


def _parts(world: "World") -> Iterator[Iterator[pl.DataFrame]]:
    blocks = PART_ROWS // _BLOCK_ROWS * _BLOCK_ROWS
    for first in range(0, world.rows, blocks):
        stop = min(first + blocks, world.rows)
        yield (world.block(start, min(_BLOCK_ROWS, stop - start)) for start in range(first, stop, _BLOCK_ROWS))


def _written(frames: Iterator[pl.DataFrame], file: Path, file_format: str) -> Iterator[pl.DataFrame]:
    """Writes the frames to one file as they pass."""
    unfinished = file.with_name(f".{file.name}.partial")
    if file_format == "csv":
        with unfinished.open("wb") as out:
            for index, frame in enumerate(frames):
                frame.with_columns(pl.col("tags").list.join("|")).write_csv(out, include_header=index == 0)
                yield frame
    else:
        writer: pq.ParquetWriter | None = None
        try:
            for frame in frames:
                table: pa.Table = frame.to_arrow()
                writer = writer or pq.ParquetWriter(unfinished, table.schema, compression="zstd")
                writer.write_table(table)
                yield frame
        finally:
            if writer:
                writer.close()
    unfinished.rename(file)


class World:
    """The users, the items, and what makes users click.

    Args:
        rows: length of the log; there are more users and items the longer it is.
        seed: of everything.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self.users = int(np.clip(rows // 50, 200, 1_000_000))
        self.items = int(np.clip(rows // 200, 100, 200_000))
        random = np.random.default_rng([seed, 0])
        self._draw_users(random)
        self._draw_items(random)
        self._draw_context(random)
        self._draw_effects(random)
        self._bias = 0.0
        self._bias = self._bias_for(CTR)

    # --- who and what there is ---

    def _draw_users(self, random: np.random.Generator) -> None:
        n = self.users
        self._user_names = _names("u", n)
        self._user_popularity = _power_law(n, 0.8)
        self._interest = random.choice(16, n, p=_weights(16, 0.5))
        self._country = random.choice(30, n, p=_weights(30, 1.1))
        age = np.clip(random.gamma(6.0, 6.0, n) + 10, 14, 90).round()
        self._age = np.where(random.random(n) < 0.2, np.nan, age)
        self._visits = np.floor(random.lognormal(2.0, 1.3, n))
        self._usual_device = random.choice(5, n, p=_weights(5, 0.8))

    def _draw_items(self, random: np.random.Generator) -> None:
        n = self.items
        self._item_names = _names("i", n)
        self._item_popularity = _power_law(n, 0.9)
        self._born = np.where(random.random(n) < 0.3, random.uniform(0.05, 1.0, n), 0.0)
        self._born[0] = 0.0
        self._category = random.choice(24, n, p=_weights(24, 0.7))
        self._brand = random.choice(400, n, p=_weights(400, 1.0))
        price = np.round(random.lognormal(3.0, 1.0, n), 2)
        self._price = np.where(random.random(n) < 0.1, np.nan, price)
        lengths = random.integers(1, 6, n) * (random.random(n) > 0.05)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tags = random.choice(150, offsets[-1], p=_weights(150, 0.9))
        bags = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tags))
        self._tags = pl.Series(bags).list.unique(maintain_order=True)

    def _draw_context(self, random: np.random.Generator) -> None:
        self._site_popularity = _power_law(500, 1.0)
        hours = np.arange(DAYS * 24 + 1)
        busy = 1.0 + 0.7 * np.sin((hours[:-1] % 24 - 13) / 24 * 2 * np.pi)
        self._traffic = np.concatenate([[0.0], np.cumsum(busy)]) / busy.sum()
        self._hours = hours

    def _draw_effects(self, random: np.random.Generator) -> None:
        normal = random.standard_normal
        self._of_user = 0.2 * normal(self.users)
        self._of_item = 0.2 * normal(self.items)
        self._of_country = 0.45 * normal(30)
        self._of_category = 0.6 * normal(24)
        self._of_site = 0.45 * normal(500)
        self._of_device = 0.35 * normal(5)
        self._of_position = -0.2 * np.arange(8)
        self._interest_category = 1.1 * _low_rank(random, (16, 24), 2)
        self._interest_tag = 0.8 * _low_rank(random, (16, 150), 2)
        self._device_position = 0.35 * _low_rank(random, (5, 8), 2)
        self._category_daypart = 0.35 * _low_rank(random, (24, 6), 2)
        self._country_brand = 0.3 * _low_rank(random, (30, 400), 1)
        self._interest_price = 0.35 * normal(16)
        self._interest_device_daypart = 0.5 * _low_rank(random, (16, 5, 6), 2)
        lengths = self._tags.list.len().to_numpy()
        owner = np.repeat(np.arange(self.items), lengths)
        tags = self._tags.explode(empty_as_null=False).to_numpy()
        totals = np.stack([np.bincount(owner, row[tags], self.items) for row in self._interest_tag])
        self._interest_item_tags = totals / np.maximum(lengths, 1)

    def _bias_for(self, ctr: float) -> float:
        """The bias that gives the log its click-through rate, by bisection on a sample of its own."""
        sample = np.random.default_rng([self.seed, 1])
        logits = self._logits(self._draw(sample, np.sort(sample.random(1 << 16))))
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if _probability(logits + middle).mean() < ctr else (low, middle)
        return low

    # --- the rows ---

    def block(self, first: int, count: int) -> pl.DataFrame:
        """Rows ``first .. first + count - 1``; ``first`` is a multiple of the block size."""
        random = np.random.default_rng([self.seed, 2, first // _BLOCK_ROWS])
        elapsed = (np.arange(first, first + count) + random.random(_BLOCK_ROWS)[:count]) / self.rows
        drawn = self._draw(random, elapsed)
        probability = _probability(self._logits(drawn))
        click = random.random(_BLOCK_ROWS)[:count] < probability
        user, item = drawn.user, drawn.item
        return pl.DataFrame(
            {
                "timestamp": START + drawn.time,
                "user_id": self._user_names.gather(user),
                "interest": self._interest_names.gather(self._interest[user]),
                "country": self._country_names.gather(self._country[user]),
                "age": _nullable(self._age[user]),
                "visits": self._visits[user].astype(np.int64),
                "item_id": self._item_names.gather(item),
                "category": self._category_names.gather(self._category[item]),
                "brand": self._brand_names.gather(self._brand[item]),
                "tags": self._tag_names.gather(item),
                "price": _nullable(self._price[item]),
                "site": self._site_names.gather(drawn.site),
                "device": self._device_names.gather(drawn.device),
                "position": drawn.position,
                "hour": drawn.hour,
                "click": click.astype(np.int8),
                "true_probability": probability,
            }
        )

    def _draw(self, random: np.random.Generator, elapsed: np.ndarray) -> "_Drawn":
        """Who sees what and where at the times ``elapsed`` [rows], from 0 to 1. Always draws a whole block."""

        def uniform() -> np.ndarray:
            return random.random(_BLOCK_ROWS)[: len(elapsed)]

        hours = np.interp(elapsed, self._traffic, self._hours)
        user = np.searchsorted(self._user_popularity, uniform())
        item = np.full(len(elapsed), -1)
        for candidate in [np.searchsorted(self._item_popularity, uniform()) for _ in range(4)]:
            item = np.where((item < 0) & (self._born[candidate] <= elapsed), candidate, item)
        item = np.maximum(item, 0)
        usual, other = self._usual_device[user], (uniform() * 5).astype(np.int64)
        return _Drawn(
            time=(hours * 3_600_000).astype(np.int64),
            user=user,
            item=item,
            site=np.searchsorted(self._site_popularity, uniform()),
            device=np.where(uniform() < 0.7, usual, other),
            position=np.minimum((uniform() ** 2 * 8).astype(np.int64), 7),
        )

    def _logits(self, drawn: "_Drawn") -> np.ndarray:
        user, item, device, position = drawn.user, drawn.item, drawn.device, drawn.position
        interest, category = self._interest[user], self._category[item]
        country, brand = self._country[user], self._brand[item]
        daypart = drawn.hour // 4
        expensive = np.nan_to_num((np.log(self._price[item]) - 3.0).clip(-2, 2))
        years = np.nan_to_num((self._age[user] - 40) / 20).clip(-2, 2)
        habit = (np.log1p(self._visits[user]) - 2.0) / 1.3
        first_order = (
            self._of_user[user]
            + self._of_item[item]
            + self._of_country[country]
            + self._of_category[category]
            + self._of_site[drawn.site]
            + self._of_device[device]
            + self._of_position[position]
            + 0.25 * habit
            - 0.3 * np.square(years)
        )
        second_order = (
            self._interest_category[interest, category]
            + self._interest_item_tags[interest, item]
            + self._country_brand[country, brand]
            + self._device_position[device, position]
            + self._category_daypart[category, daypart]
            + self._interest_price[interest] * expensive
        )
        third_order = self._interest_device_daypart[interest, device, daypart]
        return self._bias + first_order + second_order + third_order

    # --- names ---

    @cached_property
    def _interest_names(self) -> pl.Series:
        return _names("interest_", 16)

    @cached_property
    def _country_names(self) -> pl.Series:
        return _names("country_", 30)

    @cached_property
    def _category_names(self) -> pl.Series:
        return _names("category_", 24)

    @cached_property
    def _brand_names(self) -> pl.Series:
        return _names("brand_", 400)

    @cached_property
    def _site_names(self) -> pl.Series:
        return _names("site_", 500)

    @cached_property
    def _device_names(self) -> pl.Series:
        return pl.Series(["phone", "tablet", "laptop", "tv", "watch"])

    @cached_property
    def _tag_names(self) -> pl.Series:
        """Each item's tags as text."""
        return self._tags.list.eval("tag_" + pl.element().cast(pl.String))


@dataclass(frozen=True)
class _Drawn:
    """One draw of everything but the click: int64 arrays [rows]."""

    time: np.ndarray
    user: np.ndarray
    item: np.ndarray
    site: np.ndarray
    device: np.ndarray
    position: np.ndarray

    @property
    def hour(self) -> np.ndarray:
        return self.time // 3_600_000 % 24


def _probability(logits: np.ndarray) -> np.ndarray:
    """Of a click, flipped labels counted in."""
    return LABEL_NOISE + (1 - 2 * LABEL_NOISE) / (1 + np.exp(-logits))


def _weights(n: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, n + 1) ** -exponent
    return weights / weights.sum()


def _power_law(n: int, exponent: float) -> np.ndarray:
    """Cumulative shares of n things whose popularity falls as rank^-exponent; look up a uniform number in it."""
    shares = np.cumsum(_weights(n, exponent))
    shares[-1] = 1.0
    return shares


def _low_rank(random: np.random.Generator, shape: tuple[int, ...], rank: int) -> np.ndarray:
    """A sum of ``rank`` outer products, which factorising models can find; standardised."""
    vectors = [random.standard_normal((size, rank)) for size in shape]
    axes = "abc"[: len(shape)]
    effects = np.einsum(",".join(f"{axis}r" for axis in axes) + "->" + axes, *vectors)
    return (effects - effects.mean()) / effects.std()


def _names(prefix: str, n: int) -> pl.Series:
    return pl.select(prefix + pl.int_range(n).cast(pl.String)).to_series()


def _nullable(values: np.ndarray) -> pl.Series:
    return pl.Series(values, nan_to_null=True)
