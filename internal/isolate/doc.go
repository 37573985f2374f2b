// Package isolate runs jobs in child processes of the same program, one job at a time in each, so that a job can
// be killed, limited and measured, and cannot take the process down that it works for.
//
// A [Pool] is the parent's side, [Serve] the child's. A child has two pipes to its parent and nothing else of it:
// no environment but what is harmless or asked for, no database connection. What a job wants from the outside it
// asks its parent for ([Process.Call]). It works in a directory of its own, which is removed afterwards.
//
// A child does not outlive its parent, nor the lease under which it works: it ends itself, with its whole process
// group, when the parent's end of the pipe closes, when the kernel tells of the parent's death (Linux), and when
// the lease has not been prolonged in time, as in a parent that is stopped. What its job started and left running
// is killed with it. Children are used again while nothing is wrong with them.
package isolate
