"""A day of requests drawn from the published distributions of the Azure LMM trace (ModServe, 15-22 October 2024).

Every number below that is no choice of this file is of that trace: 1,000,000 rows in 168 hours, a mean of 1.65 requests
a second; 48 % with pictures; hour-of-day shape digitised from the official notebook's plot, +-3 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from random import Random

DAY_S = 86_400.0
Quantiles = tuple[tuple[float, float], ...]
# Requests a minute of each hour (UTC) over those of the busiest, of a weekday.
# fmt: off
HOURS = (
    0.70, 0.74, 0.75, 0.71, 0.69, 0.57, 0.65, 0.76, 1.00, 0.67, 0.66, 0.65,
    0.66, 0.72, 0.80, 0.80, 0.92, 0.94, 0.80, 0.83, 0.82, 0.81, 0.77, 0.65,
)
# fmt: on
# Mean over the week; a weekend day has about 0.4 of a weekday's requests.
MEAN_PER_S = 1.65
WEEKEND = 0.4
WEEKDAY_PER_S = MEAN_PER_S * 7 / (5 + 2 * WEEKEND)
PICTURE_SHARE = 0.48
# Quantiles (share, value); between them the logarithm is interpolated. Context tokens of picture requests include the
# pictures'. Beyond p99 the published tails fall fast (power law 4.4 and 2.9): cut at MAX_PROMPT_TOKENS.
PICTURE_PROMPT = ((0.0, 150), (0.1, 432), (0.5, 1_408), (0.75, 4_021), (0.9, 9_515), (0.95, 21_100), (0.99, 35_800))
TEXT_PROMPT = ((0.0, 40), (0.1, 177), (0.5, 784), (0.75, 1_456), (0.9, 3_085), (0.95, 4_156), (0.99, 14_000))
PICTURE_OUTPUT = ((0.0, 4), (0.1, 15), (0.5, 80), (0.75, 179), (0.9, 401), (0.95, 508), (0.99, 798))
TEXT_OUTPUT = ((0.0, 3), (0.1, 8), (0.5, 147), (0.75, 219), (0.9, 471), (0.95, 756), (0.99, 1_309))
MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS = 32_768, 2_048
# Bursts within minutes. Text: its busiest minute of the week has about 160 requests of a mean of 51.6, which the hours
# and a variation of each minute's rate by 0.24 give (as ServeGen's minute counts, whose index of dispersion is 33 of
# 568 a minute). Pictures: a mean of 47.6 requests a minute, an upper edge of the official plot at 125 on average, 452
# at most: 0.7 gives 108 to 128 (highest of 10 to 20 minutes) and 331 to 610. How long bursts last is not published;
# that each minute's rate is drawn by itself is this file's choice, and the hardest one for a policy.
TEXT_VARIATION, PICTURE_VARIATION = 0.24, 0.70
# Image-driven bursts (ModServe: higher rates and more pictures a request, "e.g. video workloads"): three a week, of 1
# to 3 hours, in which 10,000 to 22,600 pictures a minute arrive instead of up to 1,000. The requests with more than 49
# pictures are 6.7 % of those with pictures and have 330 on average: half of them fall into the episodes, 45 a minute
# or 14,700 pictures a minute, the others into all hours. Over the week the prompts' distribution stays the published.
EPISODES_A_WEEK = 3
EPISODE_HOURS = (1.0, 3.0)
TAIL, TAIL_IN_EPISODES = 0.067, 0.5
EPISODE_PER_S = TAIL * TAIL_IN_EPISODES * PICTURE_SHARE * MEAN_PER_S * 168 / (EPISODES_A_WEEK * sum(EPISODE_HOURS) / 2)
# Choice: the trace has no sizes. Of a picture request's context so much is the pictures'; 4 patches are a token.
PICTURE_TOKEN_SHARE = 0.7
PATCHES_PER_TOKEN = 4


@dataclass(frozen=True)
class Arrival:
    at_s: float
    num_patches: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Kind:
    """Requests of one kind. tail: how many of them are of the longest TAIL of the prompts' distribution."""

    has_picture: bool
    prompt: Quantiles
    output: Quantiles
    tail: float = TAIL

    def share(self, random: Random) -> float:
        """Where in the distribution of prompts a request lies."""
        if random.random() < self.tail:
            return 1.0 - TAIL * random.random()
        return (1.0 - TAIL) * random.random()


TEXT = Kind(False, TEXT_PROMPT, TEXT_OUTPUT)
# Outside the episodes, of those outside.
PICTURES = Kind(True, PICTURE_PROMPT, PICTURE_OUTPUT, TAIL * (1 - TAIL_IN_EPISODES) / (1 - TAIL * TAIL_IN_EPISODES))
MANY_PICTURES = Kind(True, PICTURE_PROMPT, PICTURE_OUTPUT, 1.0)


def azure_like_week(seed: int, rate_factor: float = 1.0) -> list[list[Arrival]]:
    """Seven days, the last two of a weekend; each begins at 0 s. Three of them have an episode."""
    episodes = Random(f"azure-like {seed}").sample(range(7), EPISODES_A_WEEK)
    factors = [rate_factor] * 5 + [rate_factor * WEEKEND] * 2
    return [azure_like_day(f"{seed}.{day}", factor, has_episode=day in episodes) for day, factor in enumerate(factors)]


def azure_like_day(
    seed: int | str, rate_factor: float = 1.0, day_s: float = DAY_S, has_episode: bool | None = None
) -> list[Arrival]:
    """One weekday, in order of arrival. rate_factor multiplies the trace's rate; day_s cuts the day short.

    has_episode: None leaves it to the seed, three times in seven.
    """
    random = Random(f"azure-like {seed}")
    episode = episode_of(seed, has_episode)
    peak_per_s = rate_factor * WEEKDAY_PER_S * len(HOURS) / sum(HOURS)
    in_episodes = TAIL * TAIL_IN_EPISODES
    arrivals: list[Arrival] = []
    for minute in range(int(day_s // 60)):
        at_s = 60.0 * minute
        level = peak_per_s * _hour_shape(at_s / 3_600)
        text = level * (1 - PICTURE_SHARE) * _minute_factor(random, TEXT_VARIATION)
        pictures = level * PICTURE_SHARE * (1 - in_episodes) * _minute_factor(random, PICTURE_VARIATION)
        arrivals += _minute(random, at_s, text, TEXT)
        arrivals += _minute(random, at_s, pictures, PICTURES)
        if episode[0] <= at_s < episode[1]:
            many = rate_factor * EPISODE_PER_S * _minute_factor(random, TEXT_VARIATION)
            arrivals += _minute(random, at_s, many, MANY_PICTURES)
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def episode_of(seed: int | str, has_episode: bool | None = None) -> tuple[float, float]:
    """When the day's image-driven burst begins and ends, in seconds; of a day without one both are -1."""
    random = Random(f"azure-like episode {seed}")
    by_chance = random.random() < EPISODES_A_WEEK / 7
    if not (by_chance if has_episode is None else has_episode):
        return (-1.0, -1.0)
    begin = random.uniform(0, DAY_S - 3_600)
    return (begin, begin + 3_600 * random.uniform(*EPISODE_HOURS))


def _hour_shape(hour: float) -> float:
    """Between the middles of two hours the shape goes straight."""
    position = (hour - 0.5) % 24
    low, part = int(position), position % 1
    return HOURS[low] * (1 - part) + HOURS[(low + 1) % 24] * part


def _minute_factor(random: Random, variation: float) -> float:
    """Mean 1, standard deviation `variation`."""
    shape = 1 / variation**2
    return random.gammavariate(shape, 1 / shape)


def _minute(random: Random, at_s: float, per_s: float, kind: Kind) -> list[Arrival]:
    """Poisson arrivals of one minute."""
    arrivals, time_s = [], at_s
    while (time_s := time_s + random.expovariate(per_s)) < at_s + 60.0:
        prompt = min(round(_quantile(kind.share(random), kind.prompt)), MAX_PROMPT_TOKENS)
        output = min(round(_quantile(random.random(), kind.output)), MAX_OUTPUT_TOKENS)
        patches = round(prompt * PICTURE_TOKEN_SHARE) * PATCHES_PER_TOKEN if kind.has_picture else 0
        arrivals.append(Arrival(time_s, patches, prompt, max(output, 1)))
    return arrivals


def _quantile(share: float, quantiles: Quantiles) -> float:
    points = [*quantiles, (1.0, quantiles[-1][1] * 1.5)]
    for (low, low_value), (high, high_value) in pairwise(points):
        if share <= high:
            part = (share - low) / (high - low)
            return math.exp(math.log(low_value) * (1 - part) + math.log(high_value) * part)
    return points[-1][1]
