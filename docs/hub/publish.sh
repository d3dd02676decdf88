#!/bin/sh
# sh publish.sh students.zip /srv/qlab/course.git: the pages and exercises of a release (qlab release students.zip) as the newest state of
# the repository that students' folders follow. Makes the repository where there is none.
set -eu
umask 022
[ $# -eq 2 ] || { echo "qlab: name a release and a repository: sh publish.sh students.zip /srv/qlab/course.git" >&2; exit 1; }
[ -f "$1" ] || { echo "qlab: there is no file $1" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "qlab: $1: $(tail -n 1 "$work/said")" >&2; exit 1; }
python3 -m zipfile -e "$1" "$work/release" 2> "$work/said" || fail "$1 cannot be unpacked"
ls -d "$work"/release/qlab-*/notebooks "$work"/release/qlab-*/exercises > /dev/null 2>&1 ||
    { echo "qlab: $1 is no release: make one with qlab release students.zip" >&2; exit 1; }
[ -d "$2" ] || git init -q --bare --initial-branch=main "$2"
git clone -q "$2" "$work/course" 2> "$work/said" || fail "$2 cannot be cloned"  # an empty one it only warns of
cd "$work/course"
git symbolic-ref HEAD refs/heads/main
rm -rf notebooks exercises
cp -R "$work"/release/qlab-*/notebooks "$work"/release/qlab-*/exercises .
echo '*.ipynb -merge' > .gitattributes   # a notebook that its student and the teacher changed stays the student's, whole, never a mixture
printf '.ipynb_checkpoints/\nfeedback/\n' > .gitignore
git add -A
if git diff --cached --quiet; then echo "qlab: nothing is new."; exit 0; fi
git -c user.name=qlab -c user.email=qlab@localhost commit -q -m "The course as of $(date +%Y-%m-%d)"
git push -q origin main
echo "qlab: $(git ls-files | wc -l) files in $2"
