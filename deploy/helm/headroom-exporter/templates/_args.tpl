{{/*
Flags of the web side and of the log are the daemon's alone: arguments. Every other is an environment variable, so that each command that is
run in the container has it: kubectl exec … -- headroom-exporter doctor.
*/}}

{{/* "true" if this flag is an argument. */}}
{{- define "headroom.isArgument" -}}
{{- if or (hasPrefix "web." .) (hasPrefix "log." .) }}true{{ end }}
{{- end }}

{{/* One value as text. YAML's numbers come as floats: 100000 must not become 1e+05. */}}
{{- define "headroom.flagValue" -}}
{{- if kindIs "float64" . -}}
{{- ternary (printf "%d" (int64 .)) (toString .) (eq (floor .) .) }}
{{- else -}}
{{- toString . }}
{{- end }}
{{- end }}

{{/* The command line: what the chart says itself, then `flags`, then `extraArgs`; of a flag that takes one value the last wins. */}}
{{- define "headroom.args" -}}
- {{ printf "--web.listen-address=%s:%d" .Values.web.host (int .Values.web.port) | quote }}
{{- if include "headroom.webSecret" . }}
- --web.config.file=/etc/headroom-exporter/web/web.yml
{{- end }}
{{- if .Values.web.kubernetesAuth }}
- --web.kubernetes-auth
{{- end }}
{{- range $name, $value := .Values.flags }}
{{- if include "headroom.isArgument" $name }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ printf "--%s" $name }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- range $value }}
- {{ printf "--%s=%s" $name (include "headroom.flagValue" .) | quote }}
{{- end }}
{{- else }}
- {{ printf "--%s=%s" $name (include "headroom.flagValue" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* One flag as a variable: (list "path.rootfs" "/host/root"). */}}
{{- define "headroom.variable" -}}
- name: HEADROOM_{{ index . 0 | replace "." "_" | replace "-" "_" | upper }}
  value: {{ index . 1 | quote }}
{{- end }}

{{/* The environment: what the chart says itself, then `flags`, then `extraEnv`; of two variables of one name the last wins. */}}
{{- define "headroom.env" -}}
{{ include "headroom.variable" (list "path.rootfs" "/host/root") }}
{{ include "headroom.variable" (list "path.sysfs" "/host/sys") }}
- name: HEADROOM_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if not .Values.runtime.enabled }}
{{ include "headroom.variable" (list "runtime" "false") }}
{{- end }}
{{- with .Values.runtime.endpoint }}
{{ include "headroom.variable" (list "runtime.endpoint" .) }}
{{- end }}
{{- if not .Values.apiserver.enabled }}
{{ include "headroom.variable" (list "apiserver.url" "off") }}
{{ include "headroom.variable" (list "kubelet.url" "off") }}
{{- end }}
{{- if .Values.apiserver.probeKubelet }}
{{ include "headroom.variable" (list "apiserver.probe-kubelet" "true") }}
{{- end }}
{{- range $name, $value := .Values.flags }}
{{- if not (include "headroom.isArgument" $name) }}
{{- if kindIs "bool" $value }}
{{- if or $value (and (hasPrefix "collector." $name) (eq (len (splitList "." $name)) 2) (ne $name "collector.disable-defaults")) }}
{{ include "headroom.variable" (list $name (toString $value)) }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{ include "headroom.variable" (list $name (join "," $value)) }}
{{- else }}
{{ include "headroom.variable" (list $name (include "headroom.flagValue" $value)) }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "headroom.appArmorField" -}}
{{- if hasPrefix "Localhost/" . -}}
type: Localhost
localhostProfile: {{ trimPrefix "Localhost/" . }}
{{- else -}}
type: {{ . }}
{{- end }}
{{- end }}

{{/* Before Kubernetes 1.30. */}}
{{- define "headroom.appArmorAnnotation" -}}
{{- if hasPrefix "Localhost/" . -}}
localhost/{{ trimPrefix "Localhost/" . }}
{{- else -}}
{{- ternary "unconfined" "runtime/default" (eq . "Unconfined") }}
{{- end }}
{{- end }}
