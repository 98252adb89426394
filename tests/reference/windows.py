"""Temporal windows by loops over a dictionary of runs; written from the definition alone."""

Key = tuple[int, int, int]


def frame_stride(samples: list[tuple[int, int, int, int]], sequence: int) -> int:
    """Return the smallest difference of frames of one camera of the sequence, 1 without any.

    ``samples`` are (sequence, camera, frame, slot).
    """
    differences = [
        b[2] - a[2]
        for a in samples
        for b in samples
        if a[0] == b[0] == sequence and a[1] == b[1] and b[2] > a[2]
    ]
    return min(differences, default=1)


def runs(samples: list[tuple[int, int, int, int]], given_stride: int = 0) -> list[list[int]]:
    """Return lists of sample numbers, by (sequence, camera, slot, frame)."""
    groups: dict[Key, list[int]] = {}
    for number, (sequence, camera, _, slot) in enumerate(samples):
        groups.setdefault((sequence, camera, slot), []).append(number)
    found: list[list[int]] = []
    for key in sorted(groups):
        stride = given_stride or frame_stride(samples, key[0])
        previous = None
        for number in sorted(groups[key], key=lambda n: samples[n][2]):
            frame = samples[number][2]
            if previous is None or frame - previous != stride:
                found.append([])
            found[-1].append(number)
            previous = frame
    return found


def windows(
    samples: list[tuple[int, int, int, int]],
    length: int,
    stride: int,
    step: int,
    *,
    repeat: bool,
    given_stride: int = 0,
) -> list[list[tuple[int, bool]]]:
    """Return windows as lists of (sample number, is real)."""
    found = []
    for run in runs(samples, given_stride):
        first = 0
        while first < len(run):
            window = []
            for t in range(length):
                place = first + t * step
                window.append((run[place], True) if place < len(run) else (run[-1], False))
            if repeat or all(real for _, real in window):
                found.append(window)
            first += stride
    return found
