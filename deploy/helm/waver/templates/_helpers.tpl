{{- define "waver.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "waver.labels" -}}
app.kubernetes.io/name: waver
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "waver.selector" -}}
app.kubernetes.io/name: waver
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{/* The configuration: what `config` says, with an engine for each vLLM server. Every server of a model has an address
of its own, so that Waver can choose among them. */}}
{{- define "waver.config" -}}
{{- $engines := dict -}}
{{- $root := . -}}
{{- range $name, $engine := .Values.vllm.engines -}}
{{- $urls := list -}}
{{- range $i := until (int (default 1 $engine.replicas)) -}}
{{- $host := printf "%s-vllm-%s" (include "waver.name" $root) $name -}}
{{- $urls = append $urls (printf "http://%s-%d.%s:8000/v1" $host $i $host) -}}
{{- end -}}
{{- $made := dict "backend" "openai" "model" $engine.model "base_url" (first $urls) "plugin" true "wait" 1800 -}}
{{- if rest $urls -}}{{- $_ := set $made "replicas" (rest $urls) -}}{{- end -}}
{{- if $engine.parameters -}}{{- $_ := set $made "parameters" (int64 $engine.parameters) -}}{{- end -}}
{{- $_ := set $engines $name $made -}}
{{- end -}}
{{- $own := deepCopy .Values.config -}}
{{- if or $engines $own.engines -}}
{{- $_ := set $own "engines" (merge (default (dict) $own.engines) $engines) -}}
{{- end -}}
{{- if $own }}{{ toYaml $own }}{{ end -}}
{{- end -}}
