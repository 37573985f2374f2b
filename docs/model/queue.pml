/*
 * The queues of resources and the locks around them, as sql/schema/00002_transitions.sql has them.
 *
 * A session is a server connection, on which one transaction follows the other. Each step is a statement, or the wait
 * for one lock. What a transaction writes appears at its commit, all at once, so each statement reads what is
 * committed: its snapshot. Whatever must not decide on something older than its locks is a step behind them.
 *
 * Without a flag everything below holds. Each flag (-DNO_RECHECK, see README.md) breaks one guard.
 */

#ifndef TASKS
#define TASKS 3
#endif
#ifndef SESSIONS
#define SESSIONS 2
#endif
#define RESOURCES 2 /* each has a bucket of its own, of the same number */

mtype = { none, shared, exclusive };  /* what a task reserves of a resource; how a bucket is locked */
mtype = { absent, blocked, granted }; /* task_reservation: no row, granted = false, granted = true */
mtype = { unsent, sent, later, waiting, running, canceling, final };
                                      /* task.state; two before its dispatch; later: waiting, blocked_on is null */
mtype = { finish, retry, abandon, cancel };

typedef Task {
	mtype state;
	bit   held;               /* app_lock is not null */
	bit   spent;              /* no attempt is left */
	byte  seq;                /* its place in its queues, from 1 */
	byte  blocked_on;
	mtype wants[RESOURCES];   /* reserved_resources_record */
	mtype queued[RESOURCES]   /* task_reservation */
};
Task task[TASKS];

/* Locks, until the transaction ends. */
bit  alone[RESOURCES];        /* resource_lock FOR UPDATE */
byte sharers[RESOURCES];      /* resource_lock FOR SHARE */
bit  row[TASKS];              /* a row of task */
byte keys;                    /* app_status FOR KEY SHARE */
bit  deleting;                /* app_status, by who deletes it */

/* Scratch of one step. */
byte k, last, next, before, stop, place, waited;
bit  yes;
inline forget() { k = 0; last = 0; next = 0; before = 0; stop = 0; place = 0; waited = 0; yes = 0 }

#define NOBODY       TASKS
#define FAR          255
#define has(set, t)  (((set) >> (t)) & 1)
#define begun(t)     (task[t].state == running || task[t].state == canceling)

/* What a replayed counterexample prints. */
#define each_of(set, text) for (k : 0 .. TASKS - 1) { if :: has(set, k) -> printf(text, _pid, k) :: else fi }

/* Who may take which step, as its WHERE clause says. Requests are sent in the order of the tasks. */
#define may_dispatch(t) (task[t].state == unsent && (t == 0 || task[t - (t > 0)].state != unsent))
#define may_enqueue(t)  (task[t].state == later)
#define may_claim(t)    (task[t].state == waiting && !task[t].held && task[t].blocked_on == 0)
#define may_finish(t)   (begun(t) && task[t].held)
#define may_retry(t)    (task[t].state == running && task[t].held && !task[t].spent)
#define may_abandon(t)  (begun(t) && !task[t].held)
#define may_cancel(t)   (task[t].state == later || task[t].state == waiting || task[t].state == running)
#define is_held(t)      (task[t].held)
#define is_final(t)     (task[t].state == final)

#if TASKS == 3
#define SOME(p)    (p(0) || p(1) || p(2))
#define EVERY(p)   (p(0) && p(1) && p(2))
#define ONE(p)     if :: p(0) -> t = 0 :: p(1) -> t = 1 :: p(2) -> t = 2 fi
#define SINGLES(p) :: p(0) -> own = 1 :: p(1) -> own = 2 :: p(2) -> own = 4
#define COUPLES(p) :: p(0) && p(1) -> own = 3 :: p(0) && p(2) -> own = 5 :: p(1) && p(2) -> own = 6
#define EACH(s)    s(0) s(1) s(2)
#else
#define SOME(p)    (p(0) || p(1) || p(2) || p(3))
#define EVERY(p)   (p(0) && p(1) && p(2) && p(3))
#define ONE(p)     if :: p(0) -> t = 0 :: p(1) -> t = 1 :: p(2) -> t = 2 :: p(3) -> t = 3 fi
#define SINGLES(p) :: p(0) -> own = 1 :: p(1) -> own = 2 :: p(2) -> own = 4 :: p(3) -> own = 8
#define EACH(s)    s(0) s(1) s(2) s(3)
#endif

/* What the tasks reserve ---------------------------------------------------------------------------- */

inline reserve(first, second) { task[t].wants[0] = first; task[t].wants[1] = second }

inline choose_wants() {
	if
#if defined(ONE_QUEUE) /* one resource: any two, then an exclusive and a shared one */
	:: t != 2 -> reserve(shared, none)
	:: t != 3 -> reserve(exclusive, none)
#elif defined(TWO_QUEUES) /* any, of both */
	:: reserve(shared, shared)
	:: reserve(shared, exclusive)
	:: reserve(exclusive, shared)
	:: reserve(exclusive, exclusive)
#elif defined(SPREAD) /* two holders, whose successors are the same */
	:: t == 0 -> reserve(exclusive, none)
	:: t == 1 -> reserve(none, exclusive)
	:: t >= 2 -> reserve(shared, shared)
#elif defined(SHARED) /* two that share a resource, and one that excludes both */
	:: t <= 1 -> reserve(shared, none)
	:: t >= 2 -> reserve(exclusive, none)
#elif defined(PARTLY) /* the same, with more resources */
	:: t == 0 -> reserve(shared, none)
	:: t == 1 -> reserve(shared, shared)
	:: t >= 2 -> reserve(exclusive, exclusive)
#else /* each of two shares what the other reserves exclusively */
	:: t == 0 -> reserve(shared, exclusive)
	:: t == 1 -> reserve(exclusive, shared)
	:: t >= 2 -> reserve(exclusive, exclusive)
#endif
	fi
}

/* Reads --------------------------------------------------------------------------------------------- */

/* resources_contended: granted rows stand first and an exclusive grant stands alone, so the last row tells. */
inline look_at_tail(r) {
	last = NOBODY;
	for (k : 0 .. TASKS - 1) {
		if
		:: task[k].queued[r] != absent && (last == NOBODY || task[k].seq > task[last].seq) -> last = k
		:: else
		fi
	}
	yes = (last != NOBODY && (task[last].wants[r] == exclusive || task[last].queued[r] == blocked))
}

/* reservation_place: which reservations of t are granted at once. */
inline place_one(r) {
	look_at_tail(r);
	if
	:: task[t].wants[r] == exclusive && last == NOBODY -> grants[r] = 1 << t
	:: task[t].wants[r] == shared && !yes -> grants[r] = 1 << t
	:: else -> grants[r] = 0
	fi;
	if
	:: task[t].wants[r] != none ->
		printf("session %d: sees that task %d can be granted resource %d: %d\n", _pid, t, r, has(grants[r], t))
	:: else
	fi
}

/* The identity column of task: the next number. Final tasks stand in no order. */
inline draw_seq() {
	d_step {
		place = 0;
		for (k : 0 .. TASKS - 1) {
			if :: task[k].seq > place -> place = task[k].seq :: else fi
		}
		task[t].seq = place + 1;
		forget()
	}
}

/* task_queues_lock, before the locks: a queue with an exclusive reservation in it will be locked alone. */
inline look_one(r) {
	need[r] = none;
	for (k : 0 .. TASKS - 1) {
		if
		:: has(own, k) && task[k].wants[r] == exclusive -> need[r] = exclusive
		:: has(own, k) && task[k].wants[r] == shared && need[r] == none -> need[r] = shared
		:: else
		fi
	}
	if
	:: need[r] == shared -> look_at_tail(r); if :: yes -> need[r] = exclusive :: else fi
	:: else
	fi
}
inline look() {
	d_step {
		printf("session %d: looks at the queues of whom it will %e\n", _pid, work);
		each_of(own, "session %d: task %d is one of them\n");
		look_one(0);
		look_one(1);
#ifdef STALE_CANCEL
		unplaced = 0;
		for (k : 0 .. TASKS - 1) {
			if :: has(own, k) && task[k].state == later -> unplaced = unplaced | (1 << k) :: else fi
		};
#endif
#ifdef STALE_GRANT
		ended = own;
		leave_one(0);
		leave_one(1);
#endif
		forget()
	}
}

/* task_queues_lock, under the locks: has an exclusive reservation come in between? */
inline look_again() {
	if :: need[0] == shared -> look_at_tail(0); again = again | yes :: else fi;
	if :: need[1] == shared -> look_at_tail(1); again = again | yes :: else fi;
	forget()
}

/* task_queues_leave: the next one behind place is granted, if nothing that excludes it stands before it, and behind
 * a shared one the further shared ones up to the first exclusive one. */
#define remains(t, r) (task[t].queued[r] != absent && !has(ended, t))
inline grant_behind(r, was_held) {
	next = NOBODY;
	before = NOBODY;
	for (k : 0 .. TASKS - 1) {
		if
		:: remains(k, r) && task[k].seq > place && (next == NOBODY || task[k].seq < task[next].seq) -> next = k
		:: remains(k, r) && task[k].seq < place && (before == NOBODY || task[k].seq > task[before].seq) -> before = k
		:: else
		fi
	}
	if
	:: next != NOBODY && task[next].queued[r] == blocked && (was_held
	   || (task[next].wants[r] == shared && before != NOBODY
	       && task[before].wants[r] == shared && task[before].queued[r] == granted)) ->
		stop = FAR;
		if
		:: task[next].wants[r] == exclusive -> stop = task[next].seq; grants[r] = grants[r] | (1 << next)
		:: else
		fi;
#ifndef GRANT_TOO_MUCH
		for (k : 0 .. TASKS - 1) {
			if
			:: remains(k, r) && task[k].wants[r] == exclusive && task[k].seq >= task[next].seq && task[k].seq < stop ->
				stop = task[k].seq
			:: else
			fi
		}
#endif
		for (k : 0 .. TASKS - 1) {
			if
			:: remains(k, r) && task[k].wants[r] == shared && task[k].seq >= task[next].seq && task[k].seq < stop ->
				grants[r] = grants[r] | (1 << k)
			:: else
			fi
		}
	:: else
	fi
}

/* Those who held r, alone or among others who share it, and those who waited for it alone. */
inline leave_one(r) {
	grants[r] = 0;
	place = FAR;
	waited = FAR;
	for (k : 0 .. TASKS - 1) {
		if
		:: has(ended, k) && task[k].queued[r] == granted && task[k].wants[r] == exclusive -> place = task[k].seq
		:: has(ended, k) && task[k].queued[r] == granted && task[k].wants[r] == shared && need[r] == exclusive -> place = 0
		:: has(ended, k) && task[k].queued[r] == blocked && task[k].wants[r] == exclusive && task[k].seq < waited ->
			waited = task[k].seq
		:: else
		fi
	}
	if :: place != FAR -> grant_behind(r, true) :: else fi;
#ifndef NO_GRANT_ON_CANCEL
	if :: waited != FAR -> place = waited; grant_behind(r, false) :: else fi
#endif
}

/* Locks --------------------------------------------------------------------------------------------- */

/* resource_lock_buckets: one after the other, in their order. */
#define to_lock(b)  (need[b] != none && !has(locked, b))
#define lockable(b) (!alone[b] && (need[b] == shared || sharers[b] == 0))
#define ALL_LOCKED  (!to_lock(0) && !to_lock(1))
#ifdef WRONG_LOCK_ORDER /* what is locked alone first */
#define ONE_IS_FIRST (need[0] == shared && need[1] == exclusive)
#else
#define ONE_IS_FIRST false
#endif
#define LOCK_BUCKETS \
	:: atomic { to_lock(0) && !(ONE_IS_FIRST && to_lock(1)) && lockable(0) -> lock_bucket(0) } \
	:: atomic { to_lock(1) && (ONE_IS_FIRST || !to_lock(0)) && lockable(1) -> lock_bucket(1) }
inline lock_bucket(b) {
	if
	:: need[b] == shared -> sharers[b]++
	:: else -> alone[b] = 1
	fi;
	locked = locked | (1 << b);
	printf("session %d: has bucket %d locked, %e\n", _pid, b, need[b])
}
inline unlock_bucket(b) {
	if
	:: need[b] == shared -> sharers[b]--
	:: need[b] == exclusive -> alone[b] = 0
	:: else
	fi;
	need[b] = none;
	locked = 0
}

/* An UPDATE takes its rows by id, waits for each, and then asks its WHERE clause again. */
#define to_row(wanted, t)  (wanted(t) && !has(rows, t))
#define row_free(t)        (!row[t])
#ifdef ROWS_IN_ANY_ORDER
#define first(wanted, t)   true
#else
#define first(wanted, t)   ((t < 1 || !to_row(wanted, 0)) && (t < 2 || !to_row(wanted, 1)) && \
	(t < 3 || !to_row(wanted, 2)))
#endif
#define TRY_ROW(wanted, t) :: atomic { to_row(wanted, t) && first(wanted, t) && row_free(t) -> lock_row(t) }
inline lock_row(t) {
	row[t] = 1;
	rows = rows | (1 << t);
	printf("session %d: has the row of task %d locked\n", _pid, t)
}
#if TASKS == 3
#define LOCK_ROWS(wanted)  TRY_ROW(wanted, 0) TRY_ROW(wanted, 1) TRY_ROW(wanted, 2)
#define ALL_ROWS(wanted)   (!to_row(wanted, 0) && !to_row(wanted, 1) && !to_row(wanted, 2))
#else
#define LOCK_ROWS(wanted)  TRY_ROW(wanted, 0) TRY_ROW(wanted, 1) TRY_ROW(wanted, 2) TRY_ROW(wanted, 3)
#define ALL_ROWS(wanted)   (!to_row(wanted, 0) && !to_row(wanted, 1) && !to_row(wanted, 2) && !to_row(wanted, 3))
#endif

/* The guard of task_finish, by the holder or for nobody. task_cancel locks, and asks then. */
#define is_own(t)  (key == keyed && has(own, t) && (work == cancel || (work == abandon && may_abandon(t)) || \
	((work == finish || work == retry) && may_finish(t))))
#define is_next(t) has(grants[0] | grants[1], t)

/* Commits ------------------------------------------------------------------------------------------- */

#define conflict_in(a, b, r) (task[a].wants[r] != none && task[b].wants[r] != none && \
	(task[a].wants[r] == exclusive || task[b].wants[r] == exclusive))
#define conflict(a, b)       (conflict_in(a, b, 0) || conflict_in(a, b, 1))

/* What holds after every commit. */
inline check_one(r) {
	for (k : 0 .. TASKS - 1) {
		yes = 1;
		for (next : 0 .. TASKS - 1) {
			if
			:: task[next].queued[r] != absent && task[next].seq < task[k].seq && conflict_in(k, next, r) -> yes = 0
			:: else
			fi
		};
		yes = (task[k].queued[r] == absent || (task[k].queued[r] == granted) == yes);
		assert(yes) /* exactly the longest compatible prefix is granted */
	}
}
inline check_queues() {
	check_one(0);
	check_one(1);
	for (k : 0 .. TASKS - 1) {
		yes = (task[k].blocked_on == (task[k].queued[0] == blocked) + (task[k].queued[1] == blocked));
		assert(yes) /* blocked_on counts the others */
	}
}

/* task_dispatch, task_enqueue_due: INSERT INTO task_reservation, and the commit. */
inline enter_one(r) {
	if
	:: task[t].wants[r] == none
	:: task[t].wants[r] != none && has(grants[r], t) -> task[t].queued[r] = granted
	:: else -> task[t].queued[r] = blocked; task[t].blocked_on++
	fi;
	grants[r] = 0
}
inline enter_and_commit() {
	d_step {
		task[t].state = waiting;
		enter_one(0);
		enter_one(1);
		printf("session %d: commits: task %d has place %d and is blocked on %d\n", _pid, t, task[t].seq, task[t].blocked_on);
		check_queues();
		unlock_bucket(0);
		unlock_bucket(1);
		row[t] = 0;
		t = 0;
		forget()
	}
}

/* task_turn: UPDATE task SET app_lock, and the commit. */
inline start() {
	d_step {
		printf("session %d: commits: task %d runs\n", _pid, t);
		assert(may_claim(t)); /* nothing runs twice */
		for (k : 0 .. TASKS - 1) {
			if
			:: k != t && conflict(t, k) ->
				assert(!begun(k)); /* tasks that exclude each other never run together */
				assert(!(task[k].state == waiting && task[k].seq < task[t].seq)) /* and run in the order of their places */
			:: else
			fi
		};
		task[t].state = running;
		task[t].held = 1;
		row[t] = 0;
		t = 0;
		forget()
	}
}

/* task_finish and task_cancel: which of them end. */
inline find_ended() {
	ended = rows;
	for (k : 0 .. TASKS - 1) {
		if
		:: work == cancel && has(own, k) && task[k].state != later && task[k].state != waiting -> ended = ended & ~(1 << k)
		:: else
		fi
	}
}

/* The commit of whatever leaves queues. */
#ifdef STALE_CANCEL
#define was_placed(t) (!has(unplaced, t))
#else
#define was_placed(t) true
#endif
inline leave_and_commit() {
	d_step {
		printf("session %d: commits the %e\n", _pid, work);
		each_of(ended, "session %d: task %d has left its queues\n");
		each_of(grants[0], "session %d: task %d is granted resource 0\n");
		each_of(grants[1], "session %d: task %d is granted resource 1\n");
		unlock_bucket(0);
		unlock_bucket(1);
		for (k : 0 .. TASKS - 1) {
			if :: has(grants[0], k) -> task[k].queued[0] = granted; task[k].blocked_on-- :: else fi;
			if :: has(grants[1], k) -> task[k].queued[1] = granted; task[k].blocked_on-- :: else fi;
#ifdef COUNT_FROM_SNAPSHOT
			if :: is_next(k) -> task[k].blocked_on = counts[k]; counts[k] = 0 :: else fi;
#endif
			if
			:: has(ended, k) ->
				if :: was_placed(k) -> task[k].queued[0] = absent; task[k].queued[1] = absent; task[k].seq = 0 :: else fi;
				task[k].blocked_on = 0;
				task[k].held = 0;
				if
				:: work == retry && task[k].state == running -> task[k].state = later
				:: else -> task[k].state = final; task[k].wants[0] = none; task[k].wants[1] = none
				fi;
				task[k].spent = 1
			:: !has(ended, k) && work == cancel && has(own, k) && task[k].state == running -> task[k].state = canceling
			:: else
			fi;
			if :: has(rows, k) -> row[k] = 0 :: else fi
		};
		check_queues();
		keys = keys - keyed;
		key = 0; keyed = 0; grants[0] = 0; grants[1] = 0; rows = 0; ended = 0; own = 0; work = 0;
#ifdef STALE_CANCEL
		unplaced = 0;
#endif
		forget()
	}
}

/* Sessions ------------------------------------------------------------------------------------------ */

#ifdef UPGRADE_SHARE
inline upgrade(b) {
	d_step { look_at_tail(b); again = (need[b] == shared && yes); forget() };
	if
	:: !again
	:: atomic { again && sharers[b] == 1 -> sharers[b] = 0; alone[b] = 1; need[b] = exclusive; again = 0 }
	fi
}
#endif

#define own_held(t)  (has(own, t) && task[t].held)
#ifdef NO_APP_KEY
#define NEEDS_KEY    false
#else
#define NEEDS_KEY    (work == finish || work == retry || (work == cancel && SOME(own_held)))
#endif
#define is_freed(t)  (!task[t].held || has(rows, t))
#define LOCK_HELD(t) :: atomic { to_row(is_held, t) && row_free(t) -> lock_row(t) }

proctype session() {
	byte t, own, ended, rows, locked;
	byte grants[RESOURCES];
	mtype need[RESOURCES], work;
	bit again, key, keyed;
#ifdef COUNT_FROM_SNAPSHOT
	byte counts[TASKS];
#endif
#ifdef STALE_CANCEL
	byte unplaced;
#endif

	d_step { need[0] = none; need[1] = none };
idle:
	do
	/* task_dispatch: locks, then looks where the reservations stand, then draws seq and inserts. */
	:: atomic {
		SOME(may_dispatch) -> ONE(may_dispatch);
		choose_wants();
		task[t].state = sent;
		printf("session %d: dispatches task %d, which reserves %e, %e\n", _pid, t, task[t].wants[0], task[t].wants[1]);
		need[0] = task[t].wants[0];
		need[1] = task[t].wants[1]
	   };
#ifdef SEQ_BEFORE_LOCKS
	   draw_seq();
#endif
#ifdef STALE_PLACE
	   d_step { place_one(0); place_one(1); forget() };
#endif
	   do
	   LOCK_BUCKETS
	   :: d_step {
		ALL_LOCKED ->
#ifndef STALE_PLACE
		place_one(0);
		place_one(1);
#endif
		forget()
	      };
#ifndef SEQ_BEFORE_LOCKS
	      draw_seq();
#endif
	      break
	   od;
	   atomic { enter_and_commit() }

	/* task_enqueue_due: the same for a task that is there. Whom another has locked, that one is moving. */
	:: atomic {
		SOME(may_enqueue) -> ONE(may_enqueue);
		printf("session %d: gives task %d its place\n", _pid, t);
		need[0] = task[t].wants[0];
		need[1] = task[t].wants[1]
	   };
	   do
	   LOCK_BUCKETS
	   :: d_step {
		ALL_LOCKED && may_enqueue(t) && !row[t] -> row[t] = 1;
		place_one(0);
		place_one(1);
		forget()
	      };
	      draw_seq();
	      break
	   :: atomic { ALL_LOCKED && (!may_enqueue(t) || row[t]) -> unlock_bucket(0); unlock_bucket(1); t = 0; goto idle }
	   od;
	   atomic { enter_and_commit() }

	/* task_turn: the claim skips what is locked, asks again under the row's lock, and waits for the foreign key. */
	:: atomic { SOME(may_claim) -> ONE(may_claim) };
#ifdef CLAIM_BLINDLY
	   atomic { !row[t] -> row[t] = 1 };
#else
	   if
	   :: atomic { may_claim(t) && !row[t] -> row[t] = 1 }
	   :: atomic { !may_claim(t) || row[t] -> t = 0; goto idle }
	   fi;
#endif
	   atomic { !deleting -> start() }

	/* task_finish, by the holder (finish, retry) and within task_abandoned_finish; task_cancel. */
	:: atomic {
		if
		:: SOME(may_finish) -> work = finish;
			if
			SINGLES(may_finish)
#ifdef SWEEP
			COUPLES(may_finish)
#endif
			fi
		:: SOME(may_retry) -> work = retry; if SINGLES(may_retry) fi
		:: SOME(may_abandon) -> work = abandon; if SINGLES(may_abandon) fi
		:: SOME(may_cancel) -> work = cancel;
			if
			SINGLES(may_cancel)
#ifdef CANCEL_COUPLES
			COUPLES(may_cancel)
#endif
			fi
		fi
	   };
resend:
	   look();
	   do
	   LOCK_BUCKETS
	   :: atomic {
		ALL_LOCKED ->
#if !defined(NO_RECHECK) && !defined(UPGRADE_SHARE)
		look_again();
		if
		:: again -> /* serialization_failure */
			printf("session %d: starts over\n", _pid);
			again = 0;
			unlock_bucket(0);
			unlock_bucket(1);
			goto resend
		:: else
		fi;
#endif
		key = NEEDS_KEY
	      };
	      break
	   od;
#ifdef UPGRADE_SHARE
	   upgrade(0);
	   upgrade(1);
#endif
	   do
	   :: atomic { key && !keyed && !deleting -> keys++; keyed = 1; printf("session %d: keeps the app\n", _pid) }
	   LOCK_ROWS(is_own)
	   :: d_step {
		key == keyed && ALL_ROWS(is_own) -> find_ended();
#ifndef STALE_GRANT
		leave_one(0);
		leave_one(1);
#endif
#ifdef COUNT_FROM_SNAPSHOT
		for (k : 0 .. TASKS - 1) {
			if :: is_next(k) -> counts[k] = task[k].blocked_on - has(grants[0], k) - has(grants[1], k) :: else fi
		};
#endif
		forget()
	      };
	      break
	   od;
	   do
	   LOCK_ROWS(is_next)
	   :: atomic { ALL_ROWS(is_next) -> leave_and_commit() }; break
	   od

#ifdef SWEEP
	/* AppStatusSweep: the foreign key visits the tasks in any order. Another app takes the place of this one. */
	:: atomic { SOME(is_held) && !deleting && keys == 0 -> deleting = 1; printf("session %d: deletes the app\n", _pid) };
	   do
	   EACH(LOCK_HELD)
	   :: d_step {
		EVERY(is_freed) -> deleting = 0;
		each_of(rows, "session %d: task %d is held by nobody\n");
		for (k : 0 .. TASKS - 1) {
			if :: has(rows, k) -> row[k] = 0; task[k].held = 0 :: else fi
		};
		rows = 0;
		forget()
	      };
	      break
	   od
#endif

	/* Whoever cannot go on, and doesn't come here, is stuck: an invalid end state. */
	:: EVERY(is_final) -> break
	od
}

init {
	atomic {
		for (k : 0 .. TASKS - 1) {
			task[k].state = unsent;
			task[k].wants[0] = none;
			task[k].wants[1] = none;
			task[k].queued[0] = absent;
			task[k].queued[1] = absent;
#ifndef RETRIES
			task[k].spent = 1
#endif
		};
		for (k : 1 .. SESSIONS) { run session() };
		forget()
	}
}

#ifdef LIVENESS
ltl drains { <> (EVERY(is_final)) }
#endif
