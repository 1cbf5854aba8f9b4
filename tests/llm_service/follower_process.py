"""A follower in a process of its own: `python follower_process.py RANK SIZE FOLDER STEPS_AHEAD RENDEZVOUS SECTION`."""

from __future__ import annotations

import sys
from pathlib import Path

from parallel_helpers import FollowerThread, steps_ahead

from llm_service.parallel.rendezvous import RendezvousAddress
from triptych.config import LanguageSection


def main() -> None:
    rank, size, folder, num_steps_ahead, rendezvous, section = sys.argv[1:]
    follower = FollowerThread(
        int(rank),
        int(size),
        RendezvousAddress.from_text(rendezvous),
        Path(folder),
        LanguageSection.model_validate_json(section),
        steps_ahead(int(num_steps_ahead)),
    )
    follower.run()
    assert follower.follower is not None
    follower.follower.ended.result()


if __name__ == "__main__":
    main()
