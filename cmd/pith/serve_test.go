package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
)

// fetch reads an address, with credentials if there is a user; 0: nobody answers.
func fetch(ctx context.Context, url, user, password string) (status int, body string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err.Error()
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(data)
}

func TestAPIServesItsUsersAndEndsPolitely(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	if r := pithIn(t, db.URL, "of alice\n", "user", "add", "alice"); r.code != exitOK {
		t.Fatal(r.err)
	}
	pithIn(t, db.URL, "again\n", "user", "add", "alice").wants(t, exitFailure, "there is a user alice already")
	pithIn(t, db.URL, "x\n", "user", "password", "bob").wants(t, exitFailure, "there is no user bob")
	pithIn(t, db.URL, "", "user", "password", "alice").wants(t, exitUsage, "a password is needed")
	pithIn(t, db.URL, strings.Repeat("x", 73)+"\n", "user", "password", "alice").wants(t, exitFailure, "72 bytes")

	cmd, log := start(t, db.URL, "api", "--listen", address, "--admin-password", "of admin", "--name-template", "api-{pid}")
	base := "http://" + address + "/pulp/api/v3/"
	dbtest.Until(t, "the API is online", func(ctx context.Context) (bool, error) {
		status, body := fetch(ctx, base+"status/", "", "")
		return status == http.StatusOK && strings.Contains(body, `"online_api_apps":[{"name":"api-`), nil
	})
	for _, tt := range []struct {
		user, password string
		status         int
	}{
		{"admin", "of admin", http.StatusOK},
		{"alice", "of alice", http.StatusOK},
		{"alice", "again", http.StatusUnauthorized},
		{"admin", "", http.StatusUnauthorized},
		{"", "", http.StatusUnauthorized},
	} {
		if status, body := fetch(t.Context(), base+"tasks/", tt.user, tt.password); status != tt.status {
			t.Errorf("%s:%s gets %d: %s", tt.user, tt.password, status, body)
		}
	}
	if r := pithIn(t, db.URL, "anew\n", "user", "password", "alice"); r.code != exitOK {
		t.Fatal(r.err)
	}
	if status, _ := fetch(t.Context(), base+"tasks/", "alice", "anew"); status != http.StatusOK {
		t.Errorf("the new password gets %d", status)
	}
	pith(t, db.URL, "api", "--listen", address).wants(t, exitFailure, "address already in use")
	pith(t, db.URL, "api", "--api-root", "pulp").wants(t, exitUsage, "must begin and end with a slash")

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, log)
	}
	var left int
	if err := db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM app_status").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d registrations are left, %v", left, err)
	}
	for _, secret := range []string{"of admin", "of alice", "anew"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%q is in the log: %s", secret, log)
		}
	}
}

func TestCollectstaticWritesThePagesFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "static")
	must(t, "", "collectstatic", dir)
	for _, name := range []string{"swagger-ui-bundle.js", "swagger-ui.css", "page.js", "LICENSE"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	pith(t, "", "collectstatic", "/dev/null/x").wants(t, exitFailure, "not a directory")
}
