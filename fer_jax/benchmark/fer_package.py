"""The package fer over a clip, run as a file in an environment that need not have fer_jax.

    python fer_package.py CLIP YUNET.onnx FRAMES

For each line of its standard input, one of `MODES`, it processes the clip's first frames and
answers with a line of JSON.
"""

import json
import sys

# How the faces are found: the name in the row.
MODES = {"own": "fer with its own Haar cascade", "yunet": "fer with the same YuNet"}
LARGE_FACES = 640  # pixels of the longer side, as in `fer_jax.media.faces`


def _main(clip: str, model: str, num_frames: str) -> None:
    import cv2
    from fer.fer import FER  # pyright: ignore[reportMissingImports] (an optional peer)

    recognizer = FER(mtcnn=False)
    network = cv2.FaceDetectorYN.create(model, "", (320, 320), 0.6, 0.3)
    print(json.dumps({}), file=sys.__stdout__, flush=True)
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
                found = network.detect(small)[1]
                found = () if found is None else found
                boxes = [[round(float(v) / scale) for v in box[:4]] for box in found]
            faces += len(recognizer.detect_emotions(frame, face_rectangles=boxes))
        capture.release()
        print(json.dumps({"faces": faces}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    # Libraries may print: only answers go to the standard output.
    sys.stdout = sys.stderr
    _main(*sys.argv[1:])
