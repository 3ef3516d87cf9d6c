"""Classify a camera's frames and print each change of the label. Needs edgeadv[ort,camera], and no PyTorch.

python examples/04_camera.py model.edgeadv /dev/video0
"""

import sys

from edgeadv_runtime import Classifier, EdgeAdvError
from edgeadv_runtime.camera import Answer, Event, Frame, Stream, open_source


def main(bundle: str, source: str) -> None:
    shown = ""

    def classify(frame: Frame) -> str:
        return classifier.classify(frame.image, color_order=frame.color_order, top=1)[0].name

    def on_answer(answer: Answer[str]) -> None:
        nonlocal shown
        if answer.result != shown:
            shown = answer.result
            print(f"frame {answer.frame.index}: {shown}, {1000 * answer.age_s:.0f} ms old", flush=True)

    def on_event(event: Event) -> None:
        print(f"{event.kind}: {event.text}", file=sys.stderr)

    with Classifier.open(bundle) as classifier:
        stream = Stream(open_source(source), classify, on_answer=on_answer, on_event=on_event)
        try:
            with stream:
                stream.join()
        except KeyboardInterrupt:
            pass
        print(stream.counts(), file=sys.stderr)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (EdgeAdvError, TypeError) as error:
        print(f"{error}\nusage: 04_camera.py BUNDLE SOURCE", file=sys.stderr)
        sys.exit(2)
