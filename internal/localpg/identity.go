package localpg

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// An identity is the user that the children run as.
type identity struct {
	name     string
	uid, gid int
	switched bool // the children run as another user than we do
}

// runAs returns whom the children run as: ourselves, unless we are root.
func runAs() (identity, error) {
	if os.Geteuid() != 0 {
		return identity{name: strconv.Itoa(os.Geteuid()), uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			continue
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil || uid == 0 {
			continue
		}
		return identity{name: name, uid: uid, gid: gid, switched: true}, nil
	}
	return identity{}, fmt.Errorf("PostgreSQL refuses to run as root and there is no user postgres or nobody: add one, or run as an ordinary user")
}

// credential is what a child of ours switches to; nil means that it stays.
func (id identity) credential() *syscall.Credential {
	if !id.switched {
		return nil
	}
	return &syscall.Credential{Uid: uint32(id.uid), Gid: uint32(id.gid)}
}

// own hands a file to the identity.
func (id identity) own(path string) error {
	if !id.switched {
		return nil
	}
	return os.Lchown(path, id.uid, id.gid)
}

// canReach tells whether the identity may enter dir and all directories above it.
// Permission bits decide; access control lists are not read.
func (id identity) canReach(dir string) error {
	if !id.switched {
		return nil
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for at := real; ; at = filepath.Dir(at) {
		fi, err := os.Stat(at)
		if err != nil {
			return err
		}
		bit := os.FileMode(0o001)
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			switch {
			case int(st.Uid) == id.uid:
				bit = 0o100
			case int(st.Gid) == id.gid:
				bit = 0o010
			}
		}
		if fi.Mode().Perm()&bit == 0 {
			return fmt.Errorf("user %s cannot enter %s: choose a directory elsewhere, or run as an ordinary user", id.name, at)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}
