"""Tables and videos of what ``train predict`` found, from its lines."""

import csv
import errno
import io
import json
from pathlib import Path

import cv2
import numpy as np

from model.hand import JOINT_NAMES
from pipeline.app.files import replacing
from train.predict.lines import Lines

COLUMNS = ("image", "hand", "side", "joint", "x_m", "y_m", "z_m", "u_px", "v_px")


def write_csv(path: Path, lines: Lines) -> None:
    """Write a row for every joint: metres in the camera of the image, and pixels."""
    with replacing(path) as write:

        def row(values: list[object]) -> None:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(values)
            write(text.getvalue().encode("utf-8", "surrogateescape"))

        row(list(COLUMNS))
        name, number = "", 0
        for kind, value in lines.read():
            if kind == "image":
                name, number = json.loads(value)["name"], 0
            elif kind == "hand":
                hand = json.loads(value)
                points = zip(JOINT_NAMES, hand["joints_3d"], hand["joints_2d"], strict=True)
                for joint, place, pixel in points:
                    row([name, number, hand["side"], joint, *place, *pixel])
                number += 1


def write_video(path: Path, lines: Lines, fps: float | None) -> None:
    """Write the pictures of a video's frames as a video, in their order.

    Raises:
        OSError: If OpenCV cannot write it whole, or a picture is gone.
    """
    partial = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    writer: cv2.VideoWriter | None = None
    num = 0
    try:
        for kind, value in lines.read():
            if kind != "image":
                continue
            picture = path.parent / json.loads(value)["picture"]
            data = np.frombuffer(picture.read_bytes(), np.uint8)
            bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
            if bgr is None:
                raise OSError(f"{picture} cannot be read again: it has no place in {path}")
            if writer is None:
                size = (bgr.shape[1], bgr.shape[0])
                writer = cv2.VideoWriter(
                    str(partial), cv2.VideoWriter.fourcc(*"mp4v"), fps or 30.0, size
                )
                if not writer.isOpened():
                    raise OSError(f"{path}: OpenCV has no encoder for MPEG-4 here; use video=false")
            writer.write(bgr)
            num += 1
        if writer is not None:
            writer.release()
            # OpenCV says nothing of a full disk.
            if int(cv2.VideoCapture(str(partial)).get(cv2.CAP_PROP_FRAME_COUNT)) != num:
                raise OSError(errno.ENOSPC, "the video was not written whole", str(path))
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
