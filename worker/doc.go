// Package worker runs tasks.
//
// A Worker is one app status with a number of slots. It claims tasks that it can run, by name and
// version, runs each as a goroutine, and records how they ended. All of it is one statement, the turn:
// a turn finishes what has ended, claims for free slots, and brings back which tasks are to be canceled.
// One turn is under way at a time, so whatever ends meanwhile travels with the next one; under load
// batches form by themselves. A worker with hundreds of slots claims for a part of them, so that tasks
// run while it turns, and while much is waiting it has two turns under way.
//
// What it guarantees: it never claims what it cannot run; what it runs it holds, and when it cannot be
// sure to hold it any longer it cancels it, before anyone else may take over; an answer that got lost
// loses no task. A worker that was declared missing starts over under a new identity.
//
// Workers that are not auxiliary also keep house: they sweep the missing, queue what is due, and
// dispatch schedules, without a leader.
//
// It beats on a connection of its own. Turns, housekeeping and what tasks save and dispatch share the
// client's pool, each for the time of one statement; while its tasks run for hours it sends beats,
// looks for cancellations and keeps house.
package worker
