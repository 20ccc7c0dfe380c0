// A service written with Go's net/http that calls another: call HTTP_URL HTTPS_URL CA.
//
// It knows of no proxy: the default transport reads the environment. Prints the facts that the test
// judges.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptrace"
	"os"
)

const (
	length = 10_000_000
	calls  = 200
)

var connections int

// exchange sends a request to its end and returns the whole body of a 200.
func exchange(client *http.Client, method, url string, body io.Reader) []byte {
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		log.Fatal(err)
	}
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if !got.Reused {
			connections++
		}
	}}
	request = request.WithContext(httptrace.WithClientTrace(request.Context(), trace))
	response, err := client.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		log.Fatal(url, " ", response.Status, " ", err)
	}
	return content
}

// object decodes a JSON object.
func object(content []byte) map[string]any {
	var found map[string]any
	if err := json.Unmarshal(content, &found); err != nil {
		log.Fatal(err)
	}
	return found
}

func main() {
	service, outside, authority := os.Args[1], os.Args[2], os.Args[3]
	body := bytes.Repeat([]byte("x"), length)
	client := http.DefaultClient
	facts := map[string]any{
		"caller": object(exchange(client, "GET", service+"/hello", nil))["caller"],
		"down": []int{
			len(exchange(client, "GET", service+"/bytes?n=10000000", nil)),
			len(exchange(client, "GET", service+"/bytes?n=10000000&chunked", nil)),
		},
		// A reader whose length Go does not know is sent in chunks.
		"up": []any{
			object(exchange(client, "POST", service, bytes.NewReader(body))),
			object(exchange(client, "POST", service, io.MultiReader(bytes.NewReader(body)))),
		},
	}
	for range [calls]struct{}{} {
		exchange(client, "GET", service+"/hello", nil)
	}
	facts["connections"] = connections

	pem, err := os.ReadFile(authority)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	facts["outside"] = string(exchange(&http.Client{Transport: transport}, "GET", outside, nil))
	if err := json.NewEncoder(os.Stdout).Encode(facts); err != nil {
		log.Fatal(err)
	}
}
