"""The package fer over a clip, in an environment that need not have fer_jax.

    python inference_peer.py CLIP YUNET.onnx FRAMES

Reads the names of `MODES` from stdin, goes through the clip's first frames once for each, and
answers with a line of JSON.
"""

import json
import sys
from typing import Any

# how the faces are found: what the row calls it
MODES = {"own": "fer with its own Haar cascade", "yunet": "fer with the same YuNet"}
LARGE_FACES = 640  # the longer side, as in `fer_jax.media.faces`


def _answer(**values: Any) -> None:
    print(json.dumps(values), file=sys.__stdout__, flush=True)


def _main(clip: str, model: str, num_frames: str) -> None:
    try:
        import cv2
        from fer.fer import FER  # pyright: ignore[reportMissingImports] (an optional peer)
    except ImportError as error:
        _answer(reason=f"fer does not run here ({error})")
        return
    recognizer = FER(mtcnn=False)
    network = cv2.FaceDetectorYN.create(model, "", (320, 320), 0.6, 0.3)
    _answer(ready=True)
    for line in sys.stdin:
        capture, faces = cv2.VideoCapture(clip), 0
        for _ in range(int(num_frames)):
            read, frame = capture.read()
            if not read:
                break
            boxes = None
            if line.strip() == "yunet":
                scale = min(1.0, LARGE_FACES / max(frame.shape[:2]))
                small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                network.setInputSize((small.shape[1], small.shape[0]))
                rows = network.detect(small)[1]
                boxes = [
                    [round(float(v) / scale) for v in row[:4]]
                    for row in (() if rows is None else rows)
                ]
            faces += len(recognizer.detect_emotions(frame, face_rectangles=boxes))
        capture.release()
        _answer(faces=faces)


if __name__ == "__main__":
    # What the libraries say does not belong among the answers.
    sys.stdout = sys.stderr
    _main(*sys.argv[1:])
