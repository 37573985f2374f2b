// Package localpg runs PostgreSQL and PgBouncer as child processes, for
// development, demonstrations and tests.
//
// [Start] finds PostgreSQL on the machine, or installs the system's package, or
// fetches one into the cache directory, and then starts a server of its own on a
// free port of 127.0.0.1. [Server.StartBouncer] puts a PgBouncer before it.
//
// # Guarantees
//
// The children end with us, whatever ends us: on Linux the kernel signals them
// when the process dies, SIGKILL included. A terminal's interrupt does not reach
// them; they stop when [Server.Stop] is called, the poolers before the server.
//
// An ephemeral server leaves nothing behind after Stop. Where the process was
// killed, the next Start with the same RunDir removes the remains.
//
// A persistent server (Config.DataDir) belongs to one process at a time, and
// starts again after any kind of crash.
//
// Run by root, the children run as the user postgres, or nobody where there is
// none, because both programs refuse root. That user must be able to enter the
// cache and data directories.
//
// # What it is not for
//
// It never serves production. Whoever reaches the loopback interface is let in
// without a password, as a superuser. No Unix sockets are opened.
package localpg
