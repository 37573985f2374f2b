// Package demo turns a directory of files into a file repository's manifest, with the tasking system
// doing all of the work, and starts what that needs on this machine.
//
// Run walks the directory and dispatches a digest task per chunk of files, which shares the
// repository's resource, and a manifest task that takes the resource exclusively, so runs after them
// all. The manifest appears whole or not at all, by a rename. Tasks of a worker that died are
// dispatched again, with a new manifest task behind them.
//
// Services are a database server and a pooler of our own, a Fleet is a number of worker processes.
// Both end with this process, whatever ends it.
package demo
