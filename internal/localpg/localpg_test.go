package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestServerServesAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Settings: unsafe()})
	b, err := s.StartBouncer(t.Context(), BouncerConfig{PoolSize: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateDatabase(t.Context(), "it's one"); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateDatabase(t.Context(), "it's one"); err != nil {
		t.Errorf("creating it again: %v", err)
	}
	for name, url := range map[string]string{"server": s.URL("it's one"), "pooler": b.URL("it's one")} {
		if got := mustAsk(t, url, "SELECT current_database()::text"); got != "it's one" {
			t.Errorf("%s: connected to %q", name, got)
		}
	}
	if got := mustAsk(t, s.URL("postgres"), "SHOW server_version"); !strings.HasPrefix(got, s.Version()) {
		t.Errorf("version %q, the server says %q", s.Version(), got)
	}
	if got := mustAsk(t, s.URL("postgres"), "SHOW unix_socket_directories"); got != "" {
		t.Errorf("there are sockets in %q", got)
	}
	if got := mustAsk(t, s.URL("postgres"), "SHOW fsync"); got != "off" {
		t.Errorf("a setting did not arrive: fsync=%s", got)
	}
	if got := poolMode(t, b, "it's one"); got != "transaction" {
		t.Errorf("pool mode %q", got)
	}
	postgres, bouncer := s.PID(), b.PID()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	wantGone(t, "PgBouncer", bouncer)
	wantGone(t, "PostgreSQL", postgres)
	wantNoFile(t, s.home.dir)
}

func TestBouncerRefusesStartupParameters(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Settings: unsafe()})
	b, err := s.StartBouncer(t.Context(), BouncerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pgx.ParseConfig(b.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams = map[string]string{"statement_timeout": "1000"}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err == nil {
		hangUp(t.Context(), conn)
		t.Error("a startup parameter that is not tracked went through")
	}
}

func TestRestartsKeepPortAndData(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Settings: unsafe()})
	b, err := s.StartBouncer(t.Context(), BouncerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, s.URL("postgres"), "CREATE TABLE kept (x text); INSERT INTO kept VALUES ('yes')")
	direct, pooled := s.URL("postgres"), b.URL("postgres")

	b.Kill()
	if _, err := ask(t.Context(), pooled, "SELECT x FROM kept"); err == nil {
		t.Error("a killed pooler answers")
	}
	if b.PID() != 0 {
		t.Error("a killed pooler has a process")
	}
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mustAsk(t, pooled, "SELECT x FROM kept"); got != "yes" {
		t.Errorf("after the pooler's restart: %q", got)
	}

	for _, immediate := range []bool{true, false} {
		done, before := s.Done(), s.PID()
		if err := s.Restart(t.Context(), immediate); err != nil {
			t.Fatal(err)
		}
		<-done
		wantGone(t, "the server before the restart", before)
		if got := mustAsk(t, direct, "SELECT x FROM kept"); got != "yes" {
			t.Errorf("after a restart: %q", got)
		}
	}
	s.Kill()
	if s.PID() != 0 {
		t.Error("a killed server has a process")
	}
	if err := s.Restart(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if got := mustAsk(t, direct, "SELECT x FROM kept"); got != "yes" {
		t.Errorf("after kill and restart: %q", got)
	}
}

func TestBouncerRunsTheGivenProgram(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Settings: unsafe()})
	found, err := findBouncer(t.Context(), Config{}, s.cache)
	if err != nil {
		t.Fatal(err)
	}
	dir := openDir(t)
	for name, script := range map[string]string{
		// It leaves a mark in the log.
		"given":   "#!/bin/sh\necho 'as given' >&2\nexec '" + found.path + "' \"$@\"\n",
		"another": "#!/bin/sh\necho another 1.24.1\n",
	} {
		// A child that is forked meanwhile would hold it open for writing: text file busy.
		syscall.ForkLock.RLock()
		err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755)
		syscall.ForkLock.RUnlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := s.StartBouncer(t.Context(), BouncerConfig{Program: filepath.Join(dir, "given")})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustAsk(t, b.URL("postgres"), "SELECT current_database()::text"); got != "postgres" {
		t.Errorf("connected to %q", got)
	}
	if text := b.log.text(); !strings.Contains(text, "as given") {
		t.Errorf("another program was run; its log:\n%s", text)
	}
	for name, want := range map[string]string{"another": "unknown version", "missing": "no such file"} {
		_, err := s.StartBouncer(t.Context(), BouncerConfig{Program: filepath.Join(dir, name)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestFailureShowsTheLog(t *testing.T) {
	t.Parallel()
	_, err := Start(t.Context(), Config{Settings: map[string]string{"shared_buffers": "plenty"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "shared_buffers"`) {
		t.Errorf("error %v does not say what the server said", err)
	}
	s := start(t, Config{Settings: unsafe()})
	_, err = s.StartBouncer(t.Context(), BouncerConfig{PoolMode: "sometimes"})
	if err == nil || !strings.Contains(err.Error(), "pool_mode") {
		t.Errorf("error %v does not say what the pooler said", err)
	}
	left, err := filepath.Glob(filepath.Join(s.home.dir, "pgbouncer-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("a pooler that failed left %v (%v)", left, err)
	}
}

func TestPersistentServerSurvivesItsProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "below", "dev")
	cfg := Config{DataDir: dir, Settings: unsafe()}
	h := startHelper(t, cfg, nil)
	mustExec(t, h.URL, "CREATE TABLE kept (x text); INSERT INTO kept VALUES ('yes')")

	_, err := Start(t.Context(), cfg)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second server in the directory: error %v", err)
	}

	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = h.cmd.Wait()
	s := start(t, cfg)
	if got := mustAsk(t, s.URL("postgres"), "SELECT x FROM kept"); got != "yes" {
		t.Errorf("after the crash: %q", got)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	// The pid file of a crash long ago names a process that is now another one.
	pidFile := filepath.Join(dir, "data", "postmaster.pid")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s = start(t, cfg)
	if got := mustAsk(t, s.URL("postgres"), "SELECT x FROM kept"); got != "yes" {
		t.Errorf("after the stale pid file: %q", got)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "PG_VERSION")); err != nil {
		t.Errorf("a persistent server's data are gone: %v", err)
	}

	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("17\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Version = "16"
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "made by PostgreSQL 17") {
		t.Errorf("start with another version: error %v", err)
	}
}

func TestOrdinaryUserStartsAndStops(t *testing.T) {
	t.Parallel()
	var cred *syscall.Credential
	want := os.Geteuid()
	if want == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Skip("there is no user nobody")
		}
		if want, err = strconv.Atoi(nobody.Uid); err != nil {
			t.Fatal(err)
		}
		gid, err := strconv.Atoi(nobody.Gid)
		if err != nil {
			t.Fatal(err)
		}
		cred = &syscall.Credential{Uid: uint32(want), Gid: uint32(gid)}
	}
	h := startHelper(t, Config{Settings: unsafe()}, cred)
	if h.UID != want || h.Answer != role {
		t.Errorf("ran as %d and answered %q", h.UID, h.Answer)
	}
	if err := h.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Wait(); err != nil {
		t.Errorf("helper: %v", err)
	}
	wantGone(t, "PgBouncer", h.Bouncer)
	wantGone(t, "PostgreSQL", h.Postgres)
	wantNoFile(t, h.Dir)
}

func TestConcurrentFirstStartsShareOneTemplate(t *testing.T) {
	t.Parallel()
	cache := openDir(t)
	id, err := runAs()
	if err != nil {
		t.Fatal(err)
	}
	pg, err := findPostgres(t.Context(), Config{NoInstall: true}, 0, cache, id)
	if err != nil {
		t.Fatal(err)
	}
	made := make(chan string)
	for range 2 {
		go func() {
			dir, err := template(t.Context(), cache, pg, id)
			if err != nil {
				t.Error(err)
			}
			made <- dir
		}()
	}
	if a, b := <-made, <-made; a != b || a == "" {
		t.Errorf("templates %q and %q", a, b)
	}
}

func TestRootDirectoriesAreRefusedUpFront(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root runs servers as another user")
	}
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{{DataDir: filepath.Join(closed, "x")}, {CacheDir: filepath.Join(closed, "x")}} {
		_, err := Start(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), "cannot enter") {
			t.Errorf("%+v: error %v", cfg, err)
		}
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]string{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": "15.18 15 18",
		"postgres (PostgreSQL) 18.3\n":                           "18.3 18 3",
		"postgres (PostgreSQL) 19beta1\n":                        "19beta1 19 0",
		"PgBouncer 1.18.0\nlibevent 2.1.12-stable\n":             "1.18.0 1 18",
		"PgBouncer 1.24.1\n":                                     "1.24.1 1 24",
	} {
		version, major, minor, err := parseVersion(out)
		if got := fmt.Sprint(version, " ", major, " ", minor); err != nil || got != want {
			t.Errorf("%q: got %s, %v; want %s", out, got, err, want)
		}
	}
	if _, _, _, err := parseVersion("pg_ctl: no such thing"); err == nil {
		t.Error("nonsense has a version")
	}
	for version, want := range map[string]int{"": 0, "newest": 18, "14": 14, "18": 18} {
		if got, err := parseMajor(version); err != nil || got != want {
			t.Errorf("version %q: got %d, %v; want %d", version, got, err, want)
		}
	}
	for _, version := range []string{"13", "latest", "15.18"} {
		if _, err := parseMajor(version); err == nil {
			t.Errorf("version %q is accepted", version)
		}
	}
}
