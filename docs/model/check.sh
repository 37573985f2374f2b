#!/bin/sh
# Checks the models of this directory with spin: all of them must hold, and with any guard broken spin must find a
# counterexample. One line per check; exit status 1 if a check comes out otherwise, 2 if it cannot run.
#
#   check.sh            all checks
#   check.sh NAME...    these checks, and for a broken guard the shortest counterexample, step by step
#
# SPIN and CC name the programs, if they are not spin and cc. Each check takes some seconds and below 2 GB.
set -eu
LC_ALL=C
export LC_ALL

SPIN=${SPIN:-spin}
CC=${CC:-cc}
here=$(cd "$(dirname "$0")" && pwd)

command -v "$SPIN" >/dev/null 2>&1 || {
	echo "check.sh: $SPIN is missing: install it with apt-get install -y spin, or name it in SPIN" >&2
	exit 2
}
command -v "$CC" >/dev/null 2>&1 || {
	echo "check.sh: $CC is missing: install it with apt-get install -y gcc libc6-dev, or name it in CC" >&2
	exit 2
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 2' HUP INT TERM
cd "$work"

wanted=" $* "
checks=0
failures=0

# chosen NAME
chosen() {
	case $wanted in
	"  " | *" $1 "*) checks=$((checks + 1)) ;;
	*) return 1 ;;
	esac
}

# search MODEL FLAG...: leaves pan's output in pan.out, and sets states, seconds (of CPU time) and complete.
# claim: an ltl property, which is checked instead of assertions and invalid end states.
# order: -DBFS searches breadth first, which finds the shortest counterexample.
search() {
	model=$1
	shift
	rm -rf ./*
	cp "$here/$model.pml" .
	"$SPIN" -a "$@" "$model.pml" >spin.out 2>&1 || {
		cat spin.out >&2
		echo "check.sh: $SPIN cannot read $model.pml with $*: version 6.4 or later is needed" >&2
		exit 2
	}
	built=-O1 run=
	[ -z "$order" ] || built="-O0 $order" # a short search is not worth a long compilation
	if [ -n "$claim" ]; then
		run="-a -f -N $claim"
	else
		built="$built -DSAFETY -DNOCLAIM"
	fi
	# shellcheck disable=SC2086 # several words
	"$CC" -w -DMEMLIM=2000 -DNFAIR=3 $built -o pan pan.c >cc.out 2>&1 || {
		cat cc.out >&2
		echo "check.sh: $CC cannot compile what spin has written: install gcc and libc6-dev" >&2
		exit 2
	}
	times >before
	# shellcheck disable=SC2086
	./pan -m500000 -n $run >pan.out 2>&1 || true
	times >after
	seconds=$(awk 'FNR == 2 { split($1 "m" $2, t, /[ms]+/); s = 60 * (t[1] + t[3]) + t[2] + t[4] - s }
		END { printf "%.1f", s }' before after)
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.out)
	complete=
	if grep -q 'errors: 0$' pan.out && ! grep -q -e 'not completed' -e 'too small' pan.out; then
		complete=yes
	fi
}

# replay MODEL FLAG...: the counterexample as the model's own printf tell it.
replay() {
	[ -f "$1.pml.trail" ] || return 0
	model=$1
	shift
	"$SPIN" -t -T "$@" "$model.pml" 2>&1 | sed '/text of failed assertion/q' |
		grep -v -e '^#' -e '^	' -e '^ltl ' -e '^Never' -e '^ *[0-9]*:' -e '^spin: trail' -e 'processes created$' || true
}

# violated MODEL FLAG...: what the counterexample breaks. The comment behind an assertion names it.
violated() {
	model=$1
	shift
	if grep -q '^pan:1: invalid end state' pan.out; then
		echo "nobody waits for ever"
	elif grep -q '^pan:1: acceptance cycle' pan.out; then
		echo "it comes to its end"
	elif [ -f "$model.pml.trail" ]; then
		"$SPIN" -t -T "$@" "$model.pml" >trace 2>&1 || true
		line=$(sed -n 's/^spin: [^:]*:\([0-9]*\), Error: assertion violated.*/\1/p' trace | head -n 1)
		[ -z "$line" ] || sed -n "${line}s,.*/\* \(.*\) \*/.*,\1,p" "$model.pml"
	fi
}

# holds MODEL NAME FLAG...
holds() {
	chosen "$2" || return 0
	model=$1 name=$2
	shift 2
	search "$model" "$@"
	if [ -n "$complete" ]; then
		printf 'holds   %-5s  %-20s %-52s %8s states %5s s\n' "$model" "$name" "$*" "$states" "$seconds"
	else
		failures=$((failures + 1))
		printf 'FAILED  %-5s  %-20s %s: does not hold, or is too large\n' "$model" "$name" "$*"
		violated "$model" "$@"
		cat pan.out
		replay "$model" "$@"
	fi
}

# breaks MODEL GUARD PROPERTY FLAG...
breaks() {
	chosen "$2" || return 0
	model=$1 name=$2 property=$3
	shift 3
	[ -n "$claim" ] || order=-DBFS
	search "$model" "-D$name" "$@"
	order=
	found=$(violated "$model" "-D$name" "$@")
	if [ "$found" = "$property" ]; then
		printf 'broken  %-5s  %-20s %-52s %8s states %5s s\n' "$model" "$name" "not: $found" "$states" "$seconds"
	else
		failures=$((failures + 1))
		printf 'FAILED  %-5s  %-20s with the guard broken: %s, where a counterexample to "%s" is due\n' \
			"$model" "$name" "${found:-no counterexample}" "$property"
		cat pan.out
	fi
	[ "$wanted" = "  " ] || replay "$model" "-D$name" "$@"
}

claim=
order=

# Queues and locks. What is reserved stands in choose_wants.
holds queue crossing
holds queue two-queues -DTWO_QUEUES
holds queue one-queue -DONE_QUEUE -DTASKS=4
holds queue successors -DSPREAD -DTASKS=4
holds queue retries -DRETRIES
holds queue sweeps -DPARTLY -DSWEEP
holds queue three-sessions -DSESSIONS=3
claim=drains
holds queue drains -DPARTLY -DSWEEP -DLIVENESS
claim=

breaks queue WRONG_LOCK_ORDER "nobody waits for ever"
breaks queue STALE_PLACE "exactly the longest compatible prefix is granted"
breaks queue STALE_GRANT "exactly the longest compatible prefix is granted"
breaks queue SEQ_BEFORE_LOCKS "exactly the longest compatible prefix is granted"
breaks queue NO_RECHECK "exactly the longest compatible prefix is granted" -DSHARED
breaks queue UPGRADE_SHARE "nobody waits for ever" -DSHARED -DSESSIONS=3
breaks queue GRANT_TOO_MUCH "exactly the longest compatible prefix is granted" -DONE_QUEUE -DTASKS=4
breaks queue NO_GRANT_ON_CANCEL "exactly the longest compatible prefix is granted" -DONE_QUEUE -DTASKS=4
breaks queue COUNT_FROM_SNAPSHOT "blocked_on counts the others" -DSPREAD -DTASKS=4
breaks queue ROWS_IN_ANY_ORDER "nobody waits for ever" -DSPREAD -DTASKS=4
breaks queue CLAIM_BLINDLY "nothing runs twice"
breaks queue NO_APP_KEY "nobody waits for ever" -DPARTLY -DSWEEP
breaks queue CANCEL_COUPLES "nobody waits for ever" -DSHARED -DSWEEP
breaks queue STALE_CANCEL "exactly the longest compatible prefix is granted" -DRETRIES

# The lease and the fence.
holds lease lease
holds lease long-lease -DTTL=4 -DATTEMPTS=3
holds lease clock-jumps -DCLOCK_JUMPS
claim=drains
holds lease finishes -DFAULTS=1
claim=stops
holds lease stops -DFAULTS=1
claim=

breaks lease LEASE_FROM_REPLY "nothing runs twice at the same time"
breaks lease NO_MARGIN "nothing runs twice at the same time"
breaks lease NO_LEASED_CHECK "nothing runs twice at the same time"
breaks lease LATE_BEAT_REVIVES "nothing runs twice at the same time"
breaks lease SWEEPERS_CLOCK "nothing runs twice at the same time"
breaks lease NO_FENCE "a fenced worker changes nothing"
breaks lease NO_ATTEMPT "a fenced worker changes nothing"
breaks lease NO_ROW_COUNT "a lost lock is noticed" -DCLOCK_JUMPS
breaks lease RECORDED_BY_STATE "a lost lock is noticed" -DCLOCK_JUMPS
claim=drains
breaks lease NO_RECOVERY "it comes to its end" -DFAULTS=1
breaks lease NO_FOREIGN_KEY "it comes to its end" -DFAULTS=1
claim=

if [ $# -gt 0 ] && [ "$checks" -ne $# ]; then
	echo "check.sh: not every one of $* is a check: their names are in the third column of what check.sh prints" >&2
	exit 2
fi
if [ "$failures" -gt 0 ]; then
	echo "check.sh: $failures of $checks checks failed" >&2
	exit 1
fi
echo "$checks checks passed"
