// Package tasking hands out work: it is what a Go program imports to dispatch tasks and to follow
// them. Package worker runs them.
//
// A task type is a typed function with a name (NewType). A Registry holds the types that a program
// knows, a Client dispatches requests for them. A task may reserve resources, exclusively or shared:
// tasks that reserve a common resource run in the order of their dispatch, unless all of them only
// share it.
//
// What is guaranteed: a dispatch that returned without error is in the database, once, also if it
// had to be sent twice; a task is moved only by the process that holds it, and ends in exactly one
// final state; tasks that exclude each other never run at the same time while the clocks of the hosts
// run at about the same speed. What is not: a task whose process dies may have had effects (its
// attempt number is a fencing token for them), and a task function that ignores its context cannot be
// stopped.
//
// Nothing here holds a database session: every call is one statement, safe behind a transaction
// pooler, except dispatch in the caller's own transaction, which must be READ COMMITTED, PostgreSQL's
// default.
package tasking
