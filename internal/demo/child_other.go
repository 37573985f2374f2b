//go:build !linux

package demo

import "syscall"

// childAttr has no means here to tie the child to our life.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
