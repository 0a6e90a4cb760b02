{{- define "headroom.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "headroom.fullname" -}}
{{- $name := include "headroom.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "headroom.selectorLabels" -}}
app.kubernetes.io/name: {{ include "headroom.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "headroom.labels" -}}
{{ include "headroom.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Without the chart's version: a new chart alone restarts no pod. */}}
{{- define "headroom.podLabels" -}}
{{ include "headroom.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "headroom.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "headroom.fullname" .) }}
{{- else -}}
{{- required "serviceAccount.create is false: serviceAccount.name must say which one there is" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "headroom.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest }}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" if the collector of this name runs: (list . "node_status"). */}}
{{- define "headroom.collects" -}}
{{- $flags := (index . 0).Values.flags -}}
{{- $own := index $flags (printf "collector.%s" (index . 1)) -}}
{{- if kindIs "invalid" $own -}}
{{- ne (toString (index $flags "collector.disable-defaults")) "true" }}
{{- else -}}
{{- $own }}
{{- end }}
{{- end }}

{{/* Not empty if `helm test` has something to ask: the apiserver, about the node, with what every pod of the service account has. */}}
{{- define "headroom.tested" -}}
{{- $own := false -}}
{{- range list "kubeconfig" "apiserver.token-file" "apiserver.ca-file" -}}
{{- if hasKey $.Values.flags . -}}{{- $own = true -}}{{- end -}}
{{- end -}}
{{- $off := eq (toString (index .Values.flags "apiserver.url")) "off" -}}
{{- if and .Values.apiserver.enabled (eq (include "headroom.collects" (list . "node_status")) "true") (not $own) (not $off) -}}
true
{{- end }}
{{- end }}

{{/* "true" if the web configuration is in a Secret, ours or another. */}}
{{- define "headroom.webSecret" -}}
{{- if and .Values.web.config .Values.web.existingSecret -}}
{{- fail "web.config and web.existingSecret both say what the web configuration is: leave one out" }}
{{- end -}}
{{- if .Values.web.existingSecret -}}
{{- .Values.web.existingSecret }}
{{- else if .Values.web.config -}}
{{- include "headroom.fullname" . }}-web
{{- end }}
{{- end }}

{{- define "headroom.scheme" -}}
{{- if ne .Values.web.scheme "auto" -}}
{{- .Values.web.scheme }}
{{- else if or .Values.web.config.tls_server_config .Values.web.tlsSecret -}}
https
{{- else -}}
http
{{- end }}
{{- end }}

{{/* What a probe asks: (list . "/healthz"). */}}
{{- define "headroom.probe" -}}
{{- $root := index . 0 -}}
{{- $handler := $root.Values.probeHandler -}}
{{- if eq $handler "auto" -}}
{{- $tls := $root.Values.web.config.tls_server_config | default dict -}}
{{- $handler = ternary "tcpSocket" "httpGet" (hasPrefix "Require" (toString $tls.client_auth_type)) -}}
{{- end -}}
{{ $handler }}:
{{- if eq $handler "httpGet" }}
  path: {{ index . 1 }}
  scheme: {{ include "headroom.scheme" $root | upper }}
{{- end }}
  port: metrics
{{- with $root.Values.web.host }}
  host: {{ trimAll "[]" . | quote }}
{{- end }}
{{- end }}

{{/* "true" if this object of the Prometheus operator is wanted: (list . .Values.monitor.enabled "PodMonitor"). */}}
{{- define "headroom.operator" -}}
{{- $wanted := index . 1 -}}
{{- if eq (toString $wanted) "auto" -}}
{{- (index . 0).Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" (index . 2)) }}
{{- else -}}
{{- $wanted }}
{{- end }}
{{- end }}

{{/* What cannot be meant. */}}
{{- define "headroom.check" -}}
{{- if and .Values.web.kubernetesAuth (not .Values.apiserver.enabled) -}}
{{- fail "web.kubernetesAuth asks the apiserver, but apiserver.enabled is false" }}
{{- end -}}
{{- if and .Values.apiserver.probeKubelet (not .Values.apiserver.enabled) -}}
{{- fail "apiserver.probeKubelet asks the apiserver, but apiserver.enabled is false" }}
{{- end -}}
{{- if and .Values.web.tlsSecret (not (include "headroom.webSecret" .)) -}}
{{- fail "web.tlsSecret is only mounted: web.config (or web.existingSecret) must name /etc/headroom-exporter/tls/tls.crt and tls.key in its tls_server_config" }}
{{- end -}}
{{- if and .Values.runtime.endpoint (not .Values.runtime.enabled) -}}
{{- fail "runtime.endpoint names a socket, but runtime.enabled is false" }}
{{- end -}}
{{- range list "apiserver.url" "kubelet.url" "kubeconfig" -}}
{{- if and (hasKey $.Values.flags .) (not $.Values.apiserver.enabled) -}}
{{- fail (printf "flags has %s, but apiserver.enabled is false" .) }}
{{- end -}}
{{- end -}}
{{- end }}
