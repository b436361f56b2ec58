"""What the improvements of 1512.03385, appendix B, gain on a trained detector in two stages.

    python benchmarks/improve.py RUN DATA --context OTHER_RUN

Each row is a procedure on the same test images, with the difference to the plain detector in points
of mAP at IoU 0.5 and its 95 % interval (images drawn in pairs). OTHER_RUN was trained as RUN, but
with --set arch.context=true: its rows compare two trainings, so chance is in them.
"""

from __future__ import annotations

import argparse

from resnets.config.types import InferenceOptions
from resnets.data import dataset
from resnets.device import pick_device, use_bfloat16
from resnets.evaluation import detection
from resnets.evaluation.detection import prepare_detector
from resnets.evaluation.evaluate import load_setup


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--context")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    source = dataset.load(args.data, task="detect")
    half = use_bfloat16("auto", pick_device())
    precision = "bfloat16" if half else "float32"
    options = InferenceOptions(precision=precision, split=args.split)
    setup = load_setup(args.run, source, options, "detect")
    model, split = setup.model.fold_norms(), setup.split
    scales = (0.75, 1.0, 1.5)
    rows = {
        "plain": ([model], options),
        "box refinement, voting": ([model], InferenceOptions(refine=True)),
        "scales 0.75, 1, 1.5": ([model], InferenceOptions(scales=scales)),
        "both": ([model], InferenceOptions(refine=True, scales=scales)),
    }
    if args.context:
        other = load_setup(args.context, source, options, "detect").model.fold_norms()
        rows["global context"] = ([other], options)
        rows["all three"] = ([other], InferenceOptions(refine=True, scales=scales))
        rows["ensemble of the two"] = ([model, other], options)
    plain = None
    for name, (models, improvements) in rows.items():
        network = prepare_detector(models, improvements)
        detections = detection.detect(network, split, model.loader_options(8), bfloat16=half)
        figures = detection.evaluate_predictions(detections, split, source.classes)
        plain = plain or detections
        change = detection.compare_detections(plain, detections, split, len(source.classes))
        low, high = change.interval
        print(
            f"{name:24} mAP@.5 {figures.map50:.4f}  AP@[.5,.95] {figures.map:.4f}  "
            f"{100 * change.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) points"
        )


if __name__ == "__main__":
    main()
