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
# Picture traffic has three episodes a week, each of hours, in which it is several times as heavy (1-3 hours in the
# recipe of the trace's readers); minute counts of requests reach 3.6 times their mean (452 of 125).
EPISODES_A_WEEK = 3
EPISODE_HOURS = (1.0, 3.0)
EPISODE_FACTOR = 3.0
# Bursts of seconds to minutes: ServeGen's clients have a coefficient of variation of their gaps of about 1 at the
# median and 4.9 at p90; the rate of each minute is drawn so that its dispersion is theirs (index about 33 of 568 a
# minute, i.e. the rate itself varies by about 0.24).
MINUTE_VARIATION = 0.24
# Choice: the trace has no sizes. Of a picture request's context so much is the pictures'; 4 patches are a token.
PICTURE_TOKEN_SHARE = 0.7
PATCHES_PER_TOKEN = 4


@dataclass(frozen=True)
class Arrival:
    at_s: float
    num_patches: int
    prompt_tokens: int
    output_tokens: int


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
    peak_per_s = rate_factor * WEEKDAY_PER_S * len(HOURS) / sum(HOURS)
    episode = _episode(random, has_episode)
    arrivals: list[Arrival] = []
    for minute in range(int(day_s // 60)):
        at_s = 60.0 * minute
        level = peak_per_s * _hour_shape(at_s / 3_600)
        text = level * (1 - PICTURE_SHARE) * _minute_factor(random)
        pictures = level * PICTURE_SHARE * _minute_factor(random)
        if episode[0] <= at_s < episode[1]:
            pictures *= EPISODE_FACTOR
        arrivals += _minute(random, at_s, text, has_picture=False) + _minute(random, at_s, pictures, has_picture=True)
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _hour_shape(hour: float) -> float:
    """Between the middles of two hours the shape goes straight."""
    position = (hour - 0.5) % 24
    low, part = int(position), position % 1
    return HOURS[low] * (1 - part) + HOURS[(low + 1) % 24] * part


def _minute_factor(random: Random) -> float:
    """Mean 1, the dispersion of MINUTE_VARIATION."""
    shape = 1 / MINUTE_VARIATION**2
    return random.gammavariate(shape, 1 / shape)


def _episode(random: Random, has_episode: bool | None) -> tuple[float, float]:
    by_chance = random.random() < EPISODES_A_WEEK / 7
    if not (by_chance if has_episode is None else has_episode):
        return (-1.0, -1.0)
    begin = random.uniform(0, DAY_S - 3_600)
    return (begin, begin + 3_600 * random.uniform(*EPISODE_HOURS))


def _minute(random: Random, at_s: float, per_s: float, *, has_picture: bool) -> list[Arrival]:
    """Poisson arrivals of one minute."""
    arrivals, time_s = [], at_s
    while (time_s := time_s + random.expovariate(per_s)) < at_s + 60.0:
        prompt = min(round(_draw(random, PICTURE_PROMPT if has_picture else TEXT_PROMPT)), MAX_PROMPT_TOKENS)
        output = min(round(_draw(random, PICTURE_OUTPUT if has_picture else TEXT_OUTPUT)), MAX_OUTPUT_TOKENS)
        patches = round(prompt * PICTURE_TOKEN_SHARE) * PATCHES_PER_TOKEN if has_picture else 0
        arrivals.append(Arrival(time_s, patches, prompt, max(output, 1)))
    return arrivals


def _draw(random: Random, quantiles: tuple[tuple[float, float], ...]) -> float:
    share = random.random()
    points = [*quantiles, (1.0, quantiles[-1][1] * 1.5)]
    for (low, low_value), (high, high_value) in pairwise(points):
        if share <= high:
            part = (share - low) / (high - low)
            return math.exp(math.log(low_value) * (1 - part) + math.log(high_value) * part)
    return points[-1][1]
