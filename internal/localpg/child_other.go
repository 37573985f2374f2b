//go:build !linux

package localpg

import "syscall"

// childAttr has no means here to tie the child to our life. A server left behind
// is ended by the next start in its directory.
func childAttr(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{}
}
