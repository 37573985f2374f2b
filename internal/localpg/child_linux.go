package localpg

import "syscall"

// childAttr asks the kernel to send sig to the child when its parent thread dies.
// It survives the change of user: the request is made after it.
func childAttr(sig syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: sig}
}
