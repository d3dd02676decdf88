"""qlab gradescope: the zip that Gradescope's "Configure Autograder" takes, for one exercise set.

    setup.sh           run once, as root, when the image is built: installs Python, bubblewrap and the course into /opt/qlab
    run_autograder     run for each submission, as root, in a new container of that image
    bundle.json.gz     the hidden tests: so the zip is for Gradescope alone
    qlab/              the course without exercises, solutions and tests; what it needs is installed as constraints.txt pins it

Gradescope unpacks the zip at /autograder/source, copies run_autograder to /autograder, puts what was handed in at /autograder/submission
and who did at /autograder/submission_metadata.json, and reads /autograder/results/results.json. Its default image is Ubuntu 22.04, and a
container has 768 MB, half a processor and 10 minutes, unless the assignment's settings say otherwise.

Source: gradescope-autograders.readthedocs.io and github.com/gradescope/autograder_samples (docs/specs.md, docs/tech.md,
docs/base_images.md, docs/troubleshooting.md, docs/submission_metadata.md, docs/best_practices.md).
"""

from pathlib import Path

from qlab.grading.author import release
from qlab.grading.grade import find_bundle, load_bundle

SETUP = """#!/usr/bin/env bash
# Runs once, as root, when the image is built.
set -euo pipefail
cd /autograder/source
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends bubblewrap python3 python3-venv
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
if ! python3 -c "$fits"; then  # Ubuntu 22.04 has 3.10 by this name, and a newer one by its own
    apt-get install -y python3.12 python3.12-venv || apt-get install -y python3.11 python3.11-venv ||
        { echo "qlab needs Python 3.11 to 3.14: choose a newer Ubuntu as the autograder's base image."; exit 1; }
fi
rm -rf /opt/qlab
cp -r qlab /opt/qlab  # student code may read the course, and nothing of this folder
(cd /opt/qlab && python3 -m qlab.bootstrap --cpu)
chmod -R go+rX /opt/qlab
echo /opt/qlab/.venv/bin/python > python
chmod 700 .
"""
RUN = """#!/usr/bin/env bash
# Runs for each submission, as root. Without a results.json Gradescope shows that the autograder failed, and gives no score.
cd "$(dirname "$0")" || exit 1
chmod 700 source results  # student code runs as another user
rm -f results/results.json
exec "$(cat source/python)" -P -m qlab.grading.gradescope.run . {options}
"""
FULL = ("It runs student code in the sandbox of qlab grade, which needs the right to make namespaces. Where the container lacks it, "
        "nothing is graded and Gradescope says that the autograder failed: then make the zip with --without-namespaces.")
WITHOUT = ("It runs student code as another user, with a filter of system calls (no network, no tracing), rlimits and a clock. Not held: "
           "the code sees the container's other files and processes, and memory is bounded for each process alone. Marks are as "
           "trustworthy as with the sandbox as long as each submission has a container of its own, as on Gradescope; elsewhere use qlab "
           "grade.")


def package(root: Path, assignment: str, out: Path, bundle: str | None = None, namespaces: bool = True) -> str:
    """Write the zip, whole or not at all, readable by its owner alone; what to know about it.

    root: the clone. Raises ValueError if out is no .zip or the bundle none, FileNotFoundError where something is missing.
    """
    release.check_zip(out)
    kept = find_bundle(assignment, bundle)
    loaded = load_bundle(kept)
    name = loaded["assignment"]
    if "tracks" in loaded:
        raise ValueError(f"{name} is measured with qlab grade, all hand-ins on one machine: it has no autograder for Gradescope.")
    contents = {"setup.sh": SETUP.encode(), "run_autograder": RUN.format(options="" if namespaces else "--without-namespaces").encode(),
                "bundle.json.gz": kept.read_bytes()}
    contents |= {f"qlab/{file}": (root / file).read_bytes() for file in sorted(release.names(root, ("qlab",)))}
    release.write_zip(out, contents, lambda path: 0o100755 if path in ("setup.sh", "run_autograder") else 0o100644, private=True)
    size = out.stat().st_size / 2**20
    return (f"{out}: the autograder of {name}, {len(contents)} files, {size:.1f} MiB. The hidden tests are in it: upload it to Gradescope, "
            f"and give it to nobody.\n{FULL if namespaces else WITHOUT}\nIn the assignment's settings allow 1 processor and 3 GB or more.")
