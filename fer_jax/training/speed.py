"""How fast a run is: images and FLOP a second since somebody last asked."""

import time


class Stopwatch:
    """Counts steps and the time that they waited for data."""

    def __init__(
        self,
        reached: int,
        *,
        batch_size: int,
        flop_per_image: float | None = None,
        peak: float | None = None,
    ) -> None:
        """Starts at a step.

        Args:
          reached: steps done.
          batch_size: images in a step.
          flop_per_image: of a step; None where they were not counted.
          peak: FLOP a second that the devices reach together; None where it is not known.
        """
        self._batch_size, self._flop_per_image, self._peak = batch_size, flop_per_image, peak
        self.restart(reached)

    def restart(self, reached: int) -> None:
        """Counts anew from a step; what was before, such as a validation, is in no figure."""
        self._reached, self._waited, self._since = reached, 0.0, time.monotonic()

    def waited(self, seconds: float) -> None:
        """Adds a wait for data."""
        self._waited += seconds

    def figures(self, reached: int) -> dict[str, float]:
        """What was seen since the last restart, and restarts.

        Args:
          reached: steps done.

        Returns:
          {"images_per_second", "data_wait_share" (0 to 1)}, where the FLOP were counted
          "model_flop_per_second", and where the peak is known "model_flop_utilisation" (0 to 1).
        """
        elapsed = time.monotonic() - self._since
        images_per_second = (reached - self._reached) * self._batch_size / elapsed
        speed = {
            "images_per_second": images_per_second,
            "data_wait_share": self._waited / elapsed,
        }
        if self._flop_per_image is not None:
            speed["model_flop_per_second"] = images_per_second * self._flop_per_image
            if self._peak is not None:
                speed["model_flop_utilisation"] = speed["model_flop_per_second"] / self._peak
        self.restart(reached)
        return speed
