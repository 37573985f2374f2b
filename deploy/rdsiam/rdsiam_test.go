package rdsiam_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/pithworks/pith/deploy/rdsiam"
	"github.com/pithworks/pith/pool"
)

const endpoint = "pith.proxy-abc123.eu-central-1.rds.amazonaws.com"

// credentials are a provider that asks nobody.
func credentials(c aws.Credentials, err error) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return c, err })
}

var static = aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI", SessionToken: "session"}

func TestTokenIsSignedForTheEndpointAndTheUser(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		region, host, want string
	}{
		"region of the configuration": {"us-east-2", endpoint, "us-east-2"},
		"region of the endpoint":      {"", endpoint, "eu-central-1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := rdsiam.Source(aws.Config{Region: tt.region, Credentials: credentials(static, nil)})
			token, expires, err := source(t.Context(), pool.Endpoint{Host: tt.host, Port: 5432, User: "pith"})
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse("https://" + token)
			if err != nil {
				t.Fatal(err)
			}
			if u.Host != tt.host+":5432" {
				t.Errorf("for %s", u.Host)
			}
			signed, err := time.Parse("20060102T150405Z", u.Query().Get("X-Amz-Date"))
			if err != nil {
				t.Fatal(err)
			}
			for key, want := range map[string]string{
				"Action": "connect", "DBUser": "pith", "X-Amz-Expires": "900", "X-Amz-Security-Token": "session",
				"X-Amz-Credential": "AKIDEXAMPLE/" + signed.Format("20060102") + "/" + tt.want + "/rds-db/aws4_request",
			} {
				if got := u.Query().Get(key); got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			// The signature has whole seconds, and may be made in the next one.
			if late := expires.Sub(signed.Add(rdsiam.Lifetime)); late < -time.Minute || late >= time.Second {
				t.Errorf("said to expire %s after it does", late)
			}
			if strings.Contains(token, static.SecretAccessKey) {
				t.Error("the token holds the key")
			}
		})
	}
}

func TestTokenExpiresWithItsCredentials(t *testing.T) {
	t.Parallel()
	short := static
	short.CanExpire, short.Expires = true, time.Now().Add(5*time.Minute)
	source := rdsiam.Source(aws.Config{Credentials: credentials(short, nil)})
	_, expires, err := source(t.Context(), pool.Endpoint{Host: endpoint, Port: 5432, User: "pith"})
	if err != nil || !expires.Equal(short.Expires) {
		t.Errorf("got %s, %v, want %s", expires, err, short.Expires)
	}
}

func TestSourceSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	full := pool.Endpoint{Host: endpoint, Port: 5432, User: "pith"}
	for name, tt := range map[string]struct {
		cfg  aws.Config
		to   pool.Endpoint
		want string
	}{
		"credentials":         {aws.Config{}, full, "no AWS credentials"},
		"working credentials": {aws.Config{Credentials: credentials(aws.Credentials{}, errors.New("no role"))}, full, "find AWS credentials: no role"},
		"region":              {aws.Config{Credentials: credentials(static, nil)}, pool.Endpoint{Host: "db.example", Port: 5432, User: "pith"}, "AWS_REGION"},
		"user":                {aws.Config{Credentials: credentials(static, nil)}, pool.Endpoint{Host: endpoint, Port: 5432}, "user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token, _, err := rdsiam.Source(tt.cfg)(t.Context(), tt.to)
			if err == nil || !strings.Contains(err.Error(), tt.want) || token != "" {
				t.Errorf("got %q, %v, want an error with %q", token, err, tt.want)
			}
		})
	}
}

func TestRegionIsReadFromTheEndpoint(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		endpoint: "eu-central-1",
		"db.abc123.us-gov-west-1.rds.amazonaws.com":         "us-gov-west-1",
		"db.cluster-abc123.us-east-1.rds.amazonaws.com.":    "us-east-1",
		"db.abc123.rds.cn-north-1.amazonaws.com.cn":         "cn-north-1",
		"pith.proxy-abc123.cn-north-1.rds.amazonaws.com.cn": "cn-north-1",
		"rds.amazonaws.com":                                 "",
		"db.example":                                        "",
		"127.0.0.1":                                         "",
		"":                                                  "",
	} {
		if got := rdsiam.Region(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

func ExampleSource() {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return
	}
	p, err := pool.Open(ctx, "postgres://pith@"+endpoint+"/pith?sslmode=verify-full", pool.Config{Token: rdsiam.Source(cfg)})
	if err != nil {
		return
	}
	defer p.Close()
}
