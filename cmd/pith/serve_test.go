package main

import (
	"context"
	"io"
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

// listenAddress waits until an API listens, and answers where.
func listenAddress(t *testing.T, log *dbtest.Output) string {
	t.Helper()
	var address string
	dbtest.Until(t, "the API listens", func(context.Context) (bool, error) {
		_, said, _ := strings.Cut(log.String(), `"msg":"api listens","address":"`)
		var ok bool
		address, _, ok = strings.Cut(said, `"`)
		return ok, nil
	})
	return address
}

func TestAPIServesItsUsersAndEndsPolitely(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	if r := pithIn(t, db.URL, "of alice\n", "user", "add", "alice"); r.code != exitOK {
		t.Fatal(r.err)
	}
	pithIn(t, db.URL, "again\n", "user", "add", "alice").wants(t, exitFailure, "there is a user alice already")
	pithIn(t, db.URL, "x\n", "user", "password", "bob").wants(t, exitFailure, "there is no user bob")
	pithIn(t, db.URL, "", "user", "password", "alice").wants(t, exitUsage, "a password is needed")
	pithIn(t, db.URL, strings.Repeat("x", 73)+"\n", "user", "password", "alice").wants(t, exitFailure, "72 bytes")

	cmd, log := start(t, db.URL, "api", "--listen", "127.0.0.1:0", "--admin-password", "of admin", "--name-template", "api-{pid}")
	address := listenAddress(t, log)
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
	pith(t, db.URL, "api", "--api-root", "/a b/").wants(t, exitUsage, `the Root "/a b/": it must begin and end with a slash; between slashes it has letters`)

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

func TestAPITakesOverTheSocketOfOneThatWasKilled(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	socket := filepath.Join(t.TempDir(), "api.sock")
	listening := func(log *dbtest.Output) {
		t.Helper()
		dbtest.Until(t, "the API listens", func(context.Context) (bool, error) {
			return strings.Contains(log.String(), "api listens"), nil
		})
	}
	first, log := start(t, db.URL, "api", "--listen", socket)
	listening(log)
	pith(t, db.URL, "api", "--listen", socket).wants(t, exitFailure, "address already in use")
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	second, log := start(t, db.URL, "api", "--listen", socket)
	listening(log)
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("%v: %s", err, log)
	}
	// What is no socket is left alone.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	pith(t, db.URL, "api", "--listen", file).wants(t, exitFailure, "address already in use")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
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
