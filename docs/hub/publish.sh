#!/bin/sh
# sh publish.sh students.zip /srv/qlab/course.git: the pages and exercises of a release (qlab release students.zip) as the newest state of
# the repository that students' folders follow. Makes the repository where there is none.
set -eu
umask 022
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
[ $# -eq 2 ] || { echo "qlab: name a release and a repository: sh publish.sh students.zip /srv/qlab/course.git" >&2; exit 1; }
[ -f "$1" ] || { echo "qlab: there is no file $1" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "qlab: $1: $(tail -n 1 "$work/said")" >&2; exit 1; }
# git without the caller's settings, which may ignore files, sign, filter or refuse. Only what reaches the repository keeps them, but for
# hooks: there they may say whose repositories are trusted (safe.directory).
plain() { HOME=$work XDG_CONFIG_HOME=$work GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 git "$@" 2> "$work/said"; }
reach() { git -c core.hooksPath=/dev/null "$@" 2> "$work/said"; }
python3 -m zipfile -e "$1" "$work/release" 2> "$work/said" || fail "$1 cannot be unpacked"
ls -d "$work"/release/qlab-*/notebooks "$work"/release/qlab-*/exercises > /dev/null 2>&1 ||
    { echo "qlab: $1 is no release: make one with qlab release students.zip" >&2; exit 1; }
[ -d "$2" ] || plain init -q --bare --initial-branch=main "$2" || fail "$2 cannot be made"
reach clone -q --no-checkout --template= "$2" "$work/course" || fail "$2 cannot be cloned"  # an empty one it only warns of
cd "$work/course"
plain symbolic-ref HEAD refs/heads/main
if plain rev-parse -q --verify main > /dev/null; then plain reset -q --hard || fail "$2 cannot be checked out"; fi
rm -rf notebooks exercises
cp -R "$work"/release/qlab-*/notebooks "$work"/release/qlab-*/exercises .
echo '*.ipynb -merge' > .gitattributes   # a notebook that its student and the teacher changed stays the student's, whole, never a mixture
printf '.ipynb_checkpoints/\nfeedback/\n' > .gitignore
plain add -A || fail "the pages cannot be added"
if plain diff --cached --quiet; then echo "qlab: nothing is new."; exit 0; fi
plain -c user.name=qlab -c user.email=qlab@localhost commit -q -m "The course as of $(date +%Y-%m-%d)" || fail "the pages cannot be committed"
reach push -q origin main || fail "$2 cannot be changed"
echo "qlab: $(plain ls-files | wc -l) files in $2"
