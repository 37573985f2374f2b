/*
 * The lease of a worker, and the fence around its tasks: app_status/appstatus.go, worker/shift.go, and in sql/ the
 * functions app_register, app_beat, task_turn, task_finish, task_abandoned_finish and the query AppStatusSweep.
 *
 * One worker of one slot in full: it may stand still anywhere, its statements and their answers may be lost, and a
 * statement that it has given up may be executed later. The rest of the fleet never fails: it sweeps, ends what was
 * abandoned, and claims. There is one task.
 *
 * Time passes in ticks, and no clock is compared with another: the database counts what has passed since it wrote
 * the last beat, the worker what has passed since it sent the beat that counts.
 *
 * Without a flag everything below holds. Each flag (-DNO_FENCE, see README.md) breaks one guard.
 */

#ifndef TTL
#define TTL 3
#endif
#define STOP 1           /* so many ticks a canceled function may take to return */
#ifdef NO_MARGIN
#define MARGIN 0
#else
#define MARGIN 1         /* App.margin: what is left of the TTL for stopping */
#endif
#define LEASE (TTL - MARGIN)
#ifndef ATTEMPTS
#define ATTEMPTS 2       /* task_kind.max_attempts */
#endif

mtype = { waiting, running, final }; /* task.state */
mtype = { nobody, worker, fleet };   /* task.app_lock, and whom the outcome is from */
mtype = { none, alive, missing };    /* the answer to a beat */

/* The database. */
bit   registered = 1;    /* the worker has a row in app_status */
byte  age;               /* ticks since its last_heartbeat */
mtype state = waiting;
mtype app_lock = nobody;
byte  attempt;
mtype wrote = nobody;    /* stands for task.error, which tells by whom an attempt was ended */

/* The worker. */
byte since;              /* ticks since it sent the beat that counts */
bit  beating;            /* it waits for the answer to a beat */
byte asked;              /* ticks since it sent that one */
bit  paused;
bit  lost;               /* App.Lost is closed, for good */
byte runs;               /* the attempt whose function runs, or 0 */
byte unsent;             /* the attempt whose end is to be written, or 0 */
bit  failed;             /* that end */

/* What the worker has given up and may still be executed. */
bit  late_register, late_beat, late_turn, late_failed;
byte late_end;

/* The fleet. */
bit  theirs;             /* another worker runs the task */

/* For the assertions alone. */
bit  overslept;          /* the worker stood still while its function should have been stopped */
byte written;            /* the attempts that the worker has ended, as a set */

#define DONE   (state == final)
#define LEASED (since < LEASE) /* App.Leased */
#define has(set, n) (((set) >> (n)) & 1)

#ifdef FAULTS /* so many messages get lost or come late, and so many pauses: then everything must come to its end */
byte faults = FAULTS, pauses = FAULTS;
#define MAY_FAIL  (faults > 0)
#define FAILS     faults--
#define MAY_PAUSE (pauses > 0)
#define PAUSES    pauses--; paused = 1
#else         /* any number */
#define MAY_FAIL  true
#define FAILS     skip
#define MAY_PAUSE true
#define PAUSES    paused = 1
#endif

/* The guards that flags break. */
#ifdef LEASE_FROM_REPLY
#define COUNTS_FROM 0
#else
#define COUNTS_FROM asked
#endif
#ifdef LATE_BEAT_REVIVES
#define MAY_PROLONG true
#else
#define MAY_PROLONG LEASED
#endif
#ifdef NO_LEASED_CHECK
#define MAY_ACT true
#else
#define MAY_ACT LEASED
#endif
#ifdef NO_FENCE
#define IS_HOLDER true
#else
#define IS_HOLDER (app_lock == worker)
#endif
#ifdef NO_ATTEMPT
#define IS_ATTEMPT(n) true
#else
#define IS_ATTEMPT(n) (attempt == n)
#endif
#ifdef RECORDED_BY_STATE
#define IS_MINE true
#else
#define IS_MINE (wrote == worker)
#endif
#ifdef NO_RECOVERY
#define RECOVERING false
#else
#define RECOVERING unsure
#endif
#ifdef SWEEPERS_CLOCK
#define AHEAD 2
#else
#define AHEAD 0
#endif

/* The database's clock may jump, as in a failover, or the worker's stand still: then only the fence is left. */
#ifdef CLOCK_JUMPS
#define ANY_TIME true
#define EXPIRED true
#else
#define ANY_TIME false
#define EXPIRED (age + AHEAD > TTL)
#endif

/* The statements ---------------------------------------------------------------------------------- */

byte claimed;            /* the attempt that the turn has claimed, or 0 */
bit  recorded, refused;  /* the end is written; there is no app_status to point at */
inline forget() { claimed = 0; recorded = 0; refused = 0 }

/* task_finish: the guard of its UPDATE. */
inline task_finish(n, bad) {
	if
	:: n != 0 && state == running && IS_HOLDER && IS_ATTEMPT(n) ->
		printf("database: the worker's end of attempt %d is written\n", n);
		assert(app_lock == worker && attempt == n); /* a fenced worker changes nothing */
		written = written | (1 << n);
		wrote = worker;
		app_lock = nobody;
		if
		:: bad && attempt < ATTEMPTS -> state = waiting
		:: else -> state = final
		fi
	:: else
	fi;
	/* task_finished, which also knows the end that an earlier send has written */
#ifdef NO_ROW_COUNT
	recorded = 1
#else
	recorded = (n != 0 && attempt == n && app_lock == nobody && IS_MINE && (state == final || (state == waiting && bad)))
#endif
}

/* task_turn: ends what has run, tells what the worker holds and doesn't name, and claims. */
inline task_turn(n, bad, recovering) {
	task_finish(n, bad);
	if
	:: recovering && n == 0 && app_lock == worker ->
		claimed = attempt;
		printf("database: tells the worker that it holds attempt %d\n", attempt)
	:: state == waiting ->
#ifdef NO_FOREIGN_KEY
		state = running; app_lock = worker; attempt++; claimed = attempt; wrote = nobody;
		printf("database: attempt %d is the worker's\n", attempt)
#else
		if
		:: registered -> state = running; app_lock = worker; attempt++; claimed = attempt; wrote = nobody;
			printf("database: attempt %d is the worker's\n", attempt)
		:: else -> refused = 1; printf("database: the worker has no row and gets nothing\n")
		fi
#endif
	:: else
	fi
}

/* Time passes, but not while a worker that is awake must stop its function. */
active proctype clock() {
end:	do
	:: d_step {
		!DONE && !(runs != 0 && !paused && since >= LEASE + STOP) ->
		printf("a tick passes\n");
		assert(ANY_TIME || !(runs != 0 && theirs && !paused)); /* nothing runs twice at the same time */
		if :: registered && age <= TTL -> age++ :: else fi;
		if :: since <= TTL && (!lost || runs != 0) -> since++ :: else fi;
		if :: beating && asked < LEASE -> asked++ :: else fi;
		if :: runs != 0 && since > LEASE + STOP -> overslept = 1 :: else fi
	   }
	od
}

/* A process that stands still. While no function runs, that is no different from a slow one. */
active proctype fate() {
end:	do
	:: atomic { !DONE && !paused && runs != 0 && MAY_PAUSE -> PAUSES; printf("worker: stands still\n") }
	:: atomic { paused -> paused = 0; printf("worker: goes on\n") }
	od
}

/* The worker -------------------------------------------------------------------------------------- */

/* App.Run: one beat at a time, on a connection of its own. */
active proctype beats() {
	mtype answer = none;
end:	do
	:: atomic { !DONE && !paused && !lost -> beating = 1; asked = 0; printf("worker: sends a beat\n") };
	   if
	   :: d_step { registered -> age = 0; answer = alive; printf("database: writes the beat\n") } /* app_beat */
	   :: d_step { !registered -> answer = missing; printf("database: knows no such worker\n") }
	   :: atomic {
		MAY_FAIL -> FAILS; printf("worker: gives the beat up\n");
		if
		:: late_beat = 1
		:: skip
		fi
	      }
	   fi;
	   atomic {
		!paused ->
		if
		:: answer == alive && !lost && MAY_PROLONG -> /* App.prolong */
			since = COUNTS_FROM;
			printf("worker: has the beat's answer, its lease goes on\n")
		:: answer == missing -> lost = 1; printf("worker: learns that it was declared missing\n")
		:: answer == none || lost || !MAY_PROLONG
		:: answer != none && MAY_FAIL -> FAILS; printf("worker: never gets the answer to its beat\n")
		fi;
		answer = none; beating = 0; asked = 0
	   }
	od
}

/* The timer of App.prolong, and the function of the task, whose context is canceled once the App is lost. */
active proctype function() {
end:	do
	:: atomic { !DONE && !paused && !lost && !LEASED -> lost = 1; printf("worker: its lease has ended\n") }
	:: atomic {
		runs != 0 && !paused && !lost -> unsent = runs; runs = 0; overslept = 0;
		if
		:: failed = 0
		:: failed = 1
		fi;
		printf("worker: the function has returned, failed: %d\n", failed)
	   }
	:: atomic {
		runs != 0 && !paused && lost -> runs = 0; overslept = 0;
		printf("worker: the canceled function has returned\n")
	   }
	od
}

/* shift.turn and shift.take: one turn at a time. One that is executed after the worker is lost is a late one. */
active proctype shift() {
	byte n, got;
	bit there, stored, fenced, unsure, sure;
end:	do
	:: atomic {
		!DONE && !paused && !lost && runs == 0 -> n = unsent;
		printf("worker: sends a turn, with the end of attempt %d (0: none)\n", n);
		if
		:: true ->
			d_step {
				task_turn(n, failed, RECOVERING);
				there = 1; got = claimed; stored = recorded; fenced = refused;
				sure = (n == 0 && !late_turn);
				forget()
			}
		:: MAY_FAIL -> FAILS;
			if
			:: !late_turn -> late_turn = 1; late_end = n; late_failed = (n != 0 && failed)
			:: true
			fi
		fi
	   };
	   atomic {
		if
		:: !there -> unsure = 1; printf("worker: gives the turn up\n")
		:: there && MAY_FAIL -> FAILS; unsure = 1; printf("worker: never gets the answer to its turn\n")
		:: there && (lost || fenced || !MAY_ACT) ->
			lost = 1;
			printf("worker: its lease has ended, it takes nothing from the turn\n")
		:: there && !(lost || fenced || !MAY_ACT) ->
			if
			:: n == 0
			:: n != 0 && stored ->
				assert(has(written, n)); /* a lost lock is noticed */
				unsent = 0; failed = 0
			:: n != 0 && !stored -> /* ErrLockLost */
				assert(!has(written, n) || attempt != n); /* a lock that is not lost is not taken for lost */
				unsent = 0; failed = 0
			fi;
			unsure = unsure && !sure;
			if
			:: got != 0 ->
				printf("worker: runs attempt %d\n", got);
				assert(ANY_TIME || !theirs); /* nothing runs twice at the same time */
				runs = got
			:: else
			fi
		fi;
		there = 0; got = 0; stored = 0; fenced = 0; sure = 0; n = 0;
		if
		:: lost -> unsent = 0; failed = 0; unsure = 0
		:: else
		fi
	   }
	od
}

/* Everything else --------------------------------------------------------------------------------- */

active proctype network() {
	if
	:: late_register = 1
	:: skip
	fi;
end:	do
	:: atomic { /* app_register, sent twice */
		late_register && !DONE -> late_register = 0; registered = 1; age = 0;
		printf("database: a late registration\n")
	   }
	:: d_step {
		late_beat && !DONE -> late_beat = 0;
		printf("database: a late beat\n");
		if :: registered -> age = 0 :: else fi
	   }
	:: d_step {
		late_turn && !DONE -> late_turn = 0;
		printf("database: a late turn\n");
		task_turn(late_end, late_failed, false);
		late_end = 0; late_failed = 0;
		forget()
	   }
	od
}

active proctype others() {
end:	do
	/* AppStatusSweep, and the foreign key */
	:: d_step {
		!DONE && registered && EXPIRED -> registered = 0; age = 0; printf("fleet: sweeps the worker\n");
		if :: app_lock == worker -> app_lock = nobody :: else fi
	   }
	/* task_abandoned_finish */
	:: d_step {
		state == running && app_lock == nobody -> wrote = fleet;
		printf("fleet: ends attempt %d, which nobody holds\n", attempt);
		if :: attempt < ATTEMPTS -> state = waiting :: else -> state = final fi
	   }
	/* task_turn of another worker */
	:: d_step {
		state == waiting -> printf("fleet: claims the task and runs it\n");
		assert(ANY_TIME || runs == 0 || overslept); /* nothing runs twice at the same time */
		state = running; app_lock = fleet; attempt++; theirs = 1; wrote = nobody
	   }
	:: atomic {
		theirs -> printf("fleet: ends its attempt %d\n", attempt);
		assert(state == running && app_lock == fleet); /* a fenced worker changes nothing */
		theirs = 0; wrote = fleet; app_lock = nobody;
		if
		:: attempt < ATTEMPTS -> state = waiting
		:: state = final
		fi
	   }
	od
}

#ifdef FAULTS
ltl drains { <> (state == final) }
ltl stops { [] (overslept -> <> (runs == 0)) }
#endif
