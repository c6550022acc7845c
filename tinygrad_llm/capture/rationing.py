"""How often a function may be recorded: a recording takes as long as many calls, and a layout may never come again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FREE = 1
"""How many recordings are made at once, whatever they cost."""
SHARE = 0.1
"""Further ones may take what replays have saved, and this share of the time that all calls would have taken without capture."""
OFTEN = 16
"""After how many calls it is said that most were no replays; after how many that were all new, one in LOOKS is looked at."""
LOOKS = 8


class Recent:
    """The last so many keys."""

    def __init__(self, most: int = 256) -> None:
        self._most, self._keys = most, dict[Any, None]()

    def __contains__(self, key: Any) -> bool:
        return key in self._keys

    def add(self, key: Any) -> None:
        """As the newest; the oldest goes."""
        self.discard(key)
        self._keys[key] = None
        if len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]

    def discard(self, key: Any) -> None:
        """Without this one."""
        self._keys.pop(key, None)


class Ration:
    """The time that recordings may take, and what they have taken: whatever comes, all is at most 1 + SHARE times as slow as
    without capture, but for the first recording. Times are in seconds.

    recorded    how many recordings there were that gave a program
    replayed    how many calls were replays
    """

    def __init__(self, free: int = 1) -> None:
        self._free, self._told = max(free, FREE), False
        self.recorded = self.replayed = self._tried = self._runs = 0
        self._strange = self._unlooked = 0
        self._news: list[str] = []
        self._recording = self._replaying = self._running = 0.0

    def looks(self) -> bool:
        """Whether to look at what a call is like: where each is new, that takes time for nothing."""
        if self._strange < OFTEN:
            return True
        self._unlooked = (self._unlooked + 1) % LOOKS
        return not self._unlooked

    def allows(self, known: bool, twin: bool = False) -> bool:
        """Whether one more recording is worth its time, of what was called before (known) or never; twin: of the one layout
        that there is, for tensors that now have a `.grad`, which is done at once.

        A function that has changed something in its first recording may be recorded once more. After that it must have run as
        it is, and so have said how long that takes.
        """
        self._strange = 0 if known else self._strange + 1
        if self._tried < self._free * (2 if (known and not self.recorded) or (twin and self.recorded == 1) else 1):
            return True
        if not known or not self._runs:
            return False
        mean = self._running / self._runs
        without = self._running + self.replayed * mean
        saved = self.replayed * mean - self._replaying
        return self._recording * (1 + 1 / self._tried) <= SHARE * without + saved

    def told(self, news: Callable[[], str]) -> str | None:
        """What to say, once, if most calls were no replays. news() is what was new in one that is not recorded."""
        calls = self.replayed + self._runs
        if self._told or calls < OFTEN - 2:
            return None
        self._news = [*self._news, news()][-3:]
        if calls < OFTEN or self.replayed >= calls / 2:
            return None
        self._told = True
        return (f"in {calls} calls it was recorded {self.recorded} times and replayed {self.replayed} times; the others ran "
                "without capture, for a recording takes as long as many calls, and must save as much. What was new in the "
                f"last: {'; '.join(self._news)}")

    def add_recording(self, seconds: float, good: bool) -> None:
        """A recording took so long."""
        self._tried += 1
        self._strange = 0
        self.recorded += good
        self._recording += seconds

    def add_replay(self, seconds: float) -> None:
        """A replay took so long."""
        self.replayed += 1
        self._strange = 0
        self._replaying += seconds

    def add_stranger(self) -> None:
        """A call of which it is known that it is not replayed."""
        self._strange += 1

    def add_run(self, seconds: float) -> None:
        """The function as it is took so long."""
        self._runs += 1
        self._running += seconds
