package main

import (
	"bytes"
	"net/url"
	"os"
	"strings"
	"testing"
)

// offline gives the SDK credentials, and nothing to ask for them.
func offline(t *testing.T) {
	t.Helper()
	for key, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "",
	} {
		t.Setenv(key, value)
	}
}

const endpoint = "pith.proxy-abc123.eu-central-1.rds.amazonaws.com"

// environment answers as os.Getenv.
func environment(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func TestPrintsATokenAndNothingElse(t *testing.T) {
	offline(t)
	for name, tt := range map[string]struct {
		args               []string
		env                map[string]string
		host, user, region string
	}{
		"from the environment": {nil, map[string]string{"PGHOST": endpoint, "PGPORT": "6432", "PGUSER": "pith"}, endpoint + ":6432", "pith", "eu-central-1"},
		"from flags": {
			[]string{"--host", endpoint, "--port", "5433", "--user", "admin", "--region", "us-east-1"},
			map[string]string{"PGHOST": "x", "PGPORT": "y", "PGUSER": "z"},
			endpoint + ":5433", "admin", "us-east-1",
		},
		"with the default port": {[]string{"-user", "pith"}, map[string]string{"PGHOST": endpoint}, endpoint + ":5432", "pith", "eu-central-1"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			if code := run(t.Context(), tt.args, environment(tt.env), &out, &errOut); code != 0 || errOut.Len() != 0 {
				t.Fatalf("status %d: %s", code, &errOut)
			}
			line, ok := bytes.CutSuffix(out.Bytes(), []byte("\n"))
			if !ok || bytes.ContainsAny(line, "\r\n ") {
				t.Errorf("not one line: %q", out.String())
			}
			u, err := url.Parse("https://" + string(line))
			if err != nil {
				t.Fatal(err)
			}
			if u.Host != tt.host || u.Query().Get("DBUser") != tt.user || !bytes.Contains(line, []byte("%2F"+tt.region+"%2Frds-db")) {
				t.Errorf("got %s", line)
			}
		})
	}
}

func TestFailuresAreOneLineOnStandardError(t *testing.T) {
	offline(t)
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		code int
		want string
	}{
		"no host":   {nil, nil, 2, "rdsiam: which host? Set PGHOST or -host (see rdsiam -help)\n"},
		"no user":   {[]string{"-host", endpoint}, nil, 2, "rdsiam: which user? Set PGUSER or -user (see rdsiam -help)\n"},
		"bad port":  {[]string{"-host", endpoint, "-user", "pith", "-port", "70000"}, nil, 2, "rdsiam: port \"70000\" is no port (see rdsiam -help)\n"},
		"too much":  {[]string{"-host", endpoint, "-user", "pith", "x"}, nil, 2, "rdsiam: unexpected \"x\" (see rdsiam -help)\n"},
		"no region": {[]string{"-host", "db.example", "-user", "pith"}, nil, 1, "rdsiam: sign for pith@db.example:5432: no region: set AWS_REGION\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			if code := run(t.Context(), tt.args, environment(tt.env), &out, &errOut); code != tt.code || errOut.String() != tt.want || out.Len() != 0 {
				t.Errorf("status %d, %q, %q, want %d, %q", code, out.String(), errOut.String(), tt.code, tt.want)
			}
		})
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"-help"}, environment(nil), &out, &errOut); code != 0 || out.Len() != 0 || !strings.Contains(errOut.String(), "-region") {
		t.Errorf("status %d, %q, %q", code, out.String(), errOut.String())
	}
}

func TestFailsWithoutCredentials(t *testing.T) {
	offline(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"-host", endpoint, "-user", "pith"}, environment(nil), &out, &errOut)
	if code != 1 || bytes.Count(errOut.Bytes(), []byte("\n")) != 1 || !bytes.HasPrefix(errOut.Bytes(), []byte("rdsiam: find AWS credentials: ")) || out.Len() != 0 {
		t.Errorf("status %d, %q, %q", code, out.String(), errOut.String())
	}
}
